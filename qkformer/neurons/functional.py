"""A neuron's whole sequence as one operation, on the backend of choice.

The state is kept relative to the reset potential, ``u = v - v_reset``: the reset is to zero.

    h[t] = u[t-1] + (x[t] - u[t-1]) / tau      or u[t-1] + x[t] without leak
    s[t] = h[t] >= threshold
    u[t] = 0 where s[t] = 1, h[t] elsewhere
"""

import difflib

import torch
from torch import Tensor

from qkformer.neurons.reference import membrane_dtype

BACKENDS = ("auto", "torch", "cupy")


def check_backend(backend: str) -> str:
    """Return ``backend`` if it can be used.

    Raises:
        ValueError: it is no backend's name.
        RuntimeError: it cannot run here; the message says why and what to do.
    """
    if backend not in BACKENDS:
        nearest = difflib.get_close_matches(str(backend), BACKENDS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}{hint}")
    if backend == "cupy":
        raise RuntimeError(
            "backend='cupy': this version of qkformer ships no CuPy kernels yet; "
            "use backend='auto', which will take them when they are there, or backend='torch'"
        )
    return backend


def spike_sequence(
    x: Tensor,
    *,
    reciprocal_tau: float | Tensor | None,
    threshold: float = 1.0,
    alpha: float = 4.0,
    backend: str = "auto",
) -> Tensor:
    """Spikes of one neuron per element of ``x[0]``, from rest through all T time steps.

    The same function as :func:`qkformer.neurons.reference.spike_sequence`, as a single node of the
    autograd graph: it keeps ``x`` for backward and recomputes the membrane there.

    Args:
        x: input current [T, ...], floating point. 16-bit inputs are integrated in float32.
        reciprocal_tau: 1 / tau: a float, a scalar tensor (learned: gets a gradient), or None for a
            neuron without leak.
        threshold: firing threshold above the reset potential, ``v_threshold - v_reset``.
        alpha: steepness of the sigmoid surrogate.
        backend: "auto", "torch" or "cupy".

    Returns:
        Spikes [T, ...], dtype of ``x``.

    Raises:
        ValueError: ``x`` has no time axis or no time steps, or is not floating point.
    """
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"a neuron expects [T, ...] with T >= 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"a neuron expects floating-point currents, got {x.dtype}")
    check_backend(backend)
    return _SpikeSequence.apply(x, reciprocal_tau, threshold, alpha)


class _SpikeSequence(torch.autograd.Function):
    """The recurrence above, in place, and its gradient from the input alone."""

    @staticmethod
    def forward(ctx, x, reciprocal_tau, threshold, alpha):
        learned = isinstance(reciprocal_tau, Tensor)
        ctx.save_for_backward(x, *((reciprocal_tau,) if learned else ()))
        ctx.reciprocal_tau = None if learned else reciprocal_tau
        ctx.threshold, ctx.alpha = threshold, alpha
        u = torch.zeros_like(x[0], dtype=membrane_dtype(x.dtype))
        spikes = torch.empty_like(x)
        for t in range(x.shape[0]):
            _charge(u, x[t], reciprocal_tau)
            fired = u >= threshold
            spikes[t] = fired
            u.masked_fill_(fired, 0)
        return spikes

    @staticmethod
    def backward(ctx, grad_spikes):
        x, *learned = ctx.saved_tensors
        reciprocal_tau = learned[0] if learned else ctx.reciprocal_tau
        h = _membrane(x, reciprocal_tau, ctx.threshold)
        fired = h >= ctx.threshold
        u = h.masked_fill(fired, 0) if learned else None
        sigmoid = h.sub_(ctx.threshold).mul_(ctx.alpha).sigmoid_()
        grad_spikes = grad_spikes.to(h.dtype)
        grad_h = torch.ops.aten.sigmoid_backward(grad_spikes, sigmoid).mul_(ctx.alpha)
        leak = 1.0 if reciprocal_tau is None else 1 - reciprocal_tau
        for t in reversed(range(x.shape[0] - 1)):
            grad_h[t] += (grad_h[t + 1] * leak).masked_fill_(fired[t], 0)
        grad_tau = None
        if learned:
            grad_tau = (grad_h * x).sum() - (grad_h[1:] * u[:-1]).sum()
        if reciprocal_tau is not None:
            grad_h *= reciprocal_tau
        return grad_h.to(x.dtype), grad_tau, None, None


def _charge(u: Tensor, x: Tensor, reciprocal_tau: float | Tensor | None) -> Tensor:
    """u <- u + (x - u) / tau, or u + x without leak; in place."""
    x = x.to(u.dtype)
    if reciprocal_tau is None:
        return u.add_(x)
    u.mul_(1 - reciprocal_tau)  # not lerp_, which turns an infinite x into NaN
    if isinstance(reciprocal_tau, Tensor):
        return u.addcmul_(x, reciprocal_tau)
    return u.add_(x, alpha=reciprocal_tau)


def _membrane(x: Tensor, reciprocal_tau: float | Tensor | None, threshold: float) -> Tensor:
    """h[t] of every step, [T, ...]: before the reset, as the surrogate wants it."""
    u = torch.zeros_like(x[0], dtype=membrane_dtype(x.dtype))
    h = torch.empty(x.shape, dtype=u.dtype, device=x.device)
    for t in range(x.shape[0]):
        h[t] = _charge(u, x[t], reciprocal_tau)
        u.masked_fill_(u >= threshold, 0)
    return h
