"""Spiking neurons written out in plain PyTorch: the truth every faster version is tested against.

One time step of a neuron with membrane potential ``v`` and input current ``x``:

    charge   h = v + (x - (v - v_reset)) / tau      LIF and PLIF
             h = v + x                              IF
    fire     s = 1 if h >= v_threshold else 0
    reset    v = v_reset where s = 1, h elsewhere   (hard reset, outside the gradient)

The derivative of the step function in ``fire`` is replaced in backward by that of
``sigmoid(alpha * (h - v_threshold))``. Source: QKFormer (arXiv 2403.16552) with the constants of
its release; PLIF: Fang et al., ICCV 2021.
"""

import torch
from torch import Tensor


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a membrane is integrated: float32 for 16-bit inputs, else the input's."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class SigmoidSurrogate(torch.autograd.Function):
    """Heaviside step (1 at 0) whose derivative is that of ``sigmoid(alpha * x)``."""

    @staticmethod
    def forward(ctx, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        sigmoid = torch.sigmoid(ctx.alpha * x)
        return grad_output * ctx.alpha * sigmoid * (1 - sigmoid), None


def step(
    x: Tensor,
    v: Tensor,
    *,
    reciprocal_tau: float | Tensor | None,
    v_threshold: float = 1.0,
    v_reset: float = 0.0,
    alpha: float = 4.0,
) -> tuple[Tensor, Tensor]:
    """One time step.

    Args:
        x: input current, any shape.
        v: membrane potential before the step, same shape, in ``membrane_dtype(x.dtype)``.
        reciprocal_tau: 1 / tau of a leaky neuron; None for a neuron without leak (IF).

    Returns:
        Spikes (0 or 1, dtype of ``x``) and the membrane potential after the reset.
    """
    current = x.to(v.dtype)
    if reciprocal_tau is None:
        h = v + current
    else:
        h = v + (current - (v - v_reset)) * reciprocal_tau
    spikes = SigmoidSurrogate.apply(h - v_threshold, alpha)
    v = torch.where(spikes.detach().bool(), v_reset, h)
    return spikes.to(x.dtype), v


def spike_sequence(x: Tensor, *, v_reset: float = 0.0, **neuron: object) -> Tensor:
    """All time steps, from ``v = v_reset``.

    Args:
        x: input current [T, ...].
        neuron: the remaining arguments of :func:`step`.

    Returns:
        Spikes [T, ...], dtype of ``x``.
    """
    v = torch.full_like(x[0], v_reset, dtype=membrane_dtype(x.dtype))
    spikes = []
    for current in x:
        fired, v = step(current, v, v_reset=v_reset, **neuron)
        spikes.append(fired)
    return torch.stack(spikes)
