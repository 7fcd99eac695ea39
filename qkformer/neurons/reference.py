"""Spiking neurons written out in plain PyTorch: the truth every faster version is tested against.

One time step of a neuron with membrane potential ``v`` and input current ``x``::

    charge   h = v + (x - (v - v_reset)) / tau      LIF and PLIF
             h = v + x                              IF
    fire     s = 1 if h >= v_threshold else 0
    reset    v = v_reset where s = 1, h elsewhere   (hard reset, outside the gradient)

The derivative of the step function in ``fire`` is replaced in backward by that of
``sigmoid(alpha * (h - v_threshold))``, or another surrogate's. Other kinds of charge, fire and
reset are options of :func:`step`. Source: QKFormer (arXiv 2403.16552) with the constants of its
release; PLIF: Fang et al., ICCV 2021.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a membrane is integrated: float32 for 16-bit inputs, else the input's."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _sigmoid_slope(x: Tensor, alpha: float) -> Tensor:
    sigmoid = torch.sigmoid(alpha * x)
    return alpha * sigmoid * (1 - sigmoid)


def _arctan_slope(x: Tensor, alpha: float) -> Tensor:
    return alpha / 2 / (1 + (math.pi / 2 * alpha * x).square())


def _triangle_slope(x: Tensor, alpha: float) -> Tensor:
    return alpha * (1 - alpha * x.abs()).clamp(min=0)


# name -> the derivative that stands for that of the step function, and its usual alpha
SURROGATES: dict[str, tuple[Callable[[Tensor, float], Tensor], float]] = {
    "sigmoid": (_sigmoid_slope, 4.0),
    "arctan": (_arctan_slope, 2.0),
    "triangle": (_triangle_slope, 1.0),
}


class Heaviside(torch.autograd.Function):
    """Whether a neuron ``fired``, as a number, with the derivative of a surrogate by ``x``.

    ``x`` is the membrane potential above the threshold.
    """

    @staticmethod
    def forward(ctx, x: Tensor, fired: Tensor, alpha: float, surrogate: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha, ctx.slope = alpha, SURROGATES[surrogate][0]
        return fired.to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return grad_output * ctx.slope(x, ctx.alpha), None, None, None


def exporting() -> bool:
    """Whether operations are recorded for a file, which holds neither Python nor gradients.

    By ``torch.export`` (and so by ``torch.onnx.export``), or by ``torch.jit.trace``.
    """
    # not is_exporting(), which torch.compile of PyTorch 2.7 and 2.8 takes to be always true
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()


def step(
    x: Tensor,
    v: Tensor,
    *,
    reciprocal_tau: float | Tensor | None,
    v_threshold: float = 1.0,
    v_reset: float = 0.0,
    alpha: float = 4.0,
    surrogate: str = "sigmoid",
    strict: bool = False,
    soft_reset: bool = False,
    detach_reset: bool = True,
    decay_input: bool = True,
) -> tuple[Tensor, Tensor]:
    """One time step.

    Args:
        x: input current, any shape.
        v: membrane potential before the step, same shape, in ``membrane_dtype(x.dtype)``.
        reciprocal_tau: 1 / tau of a leaky neuron; None for a neuron without leak (IF).
        alpha, surrogate: steepness and name of the derivative, see ``SURROGATES``.
        strict: fire above the threshold only.
        soft_reset: a spike takes the threshold from the membrane potential.
        detach_reset: no gradient passes through the reset.
        decay_input: the current is divided by tau as well.

    Returns:
        Spikes (0 or 1, dtype of ``x``) and the membrane potential after the reset.
    """
    current = x.to(v.dtype)
    if reciprocal_tau is None:
        h = v + current
    elif decay_input:
        h = v + (current - (v - v_reset)) * reciprocal_tau
    else:
        h = v - (v - v_reset) * reciprocal_tau + current
    fired = h > v_threshold if strict else h >= v_threshold
    if exporting():
        spikes = fired.to(x.dtype)
    else:
        spikes = Heaviside.apply(h - v_threshold, fired, alpha, surrogate)
    if detach_reset:
        v = torch.where(fired, h - v_threshold if soft_reset else v_reset, h)
    elif soft_reset:
        v = h - spikes * v_threshold
    else:
        v = (1 - spikes) * h + spikes * v_reset
    return spikes.to(x.dtype), v


def spike_sequence(
    x: Tensor, *, v_reset: float = 0.0, v_init: float | None = None, **neuron: object
) -> Tensor:
    """All time steps, from ``v = v_init``.

    Args:
        x: input current [T, ...].
        v_init: None for ``v_reset``.
        neuron: the remaining arguments of :func:`step`.

    Returns:
        Spikes [T, ...], dtype of ``x``.
    """
    start = v_reset if v_init is None else v_init
    v = torch.full_like(x[0], start, dtype=membrane_dtype(x.dtype))
    spikes = []
    for current in x:
        fired, v = step(current, v, v_reset=v_reset, **neuron)
        spikes.append(fired)
    return torch.stack(spikes)
