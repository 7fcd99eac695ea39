"""A neuron's whole sequence as one operation, on the backend of choice.

The state is kept relative to the reset potential, ``u = v - v_reset``. In these coordinates every
neuron of this package is the same recurrence, with the reset at zero:

    h[t] = leak * u[t-1] + gain * x[t],   s[t] = h[t] >= threshold,   u[t] = h[t] * (1 - s[t])

LIF and PLIF have leak = 1 - 1/tau and gain = 1/tau; IF has leak = gain = 1.
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
    leak, gain = (1.0, 1.0) if reciprocal_tau is None else (1 - reciprocal_tau, reciprocal_tau)
    return _SpikeSequence.apply(x, leak, gain, threshold, alpha)


def _charge(u: Tensor, x: Tensor, leak: float | Tensor, gain: float | Tensor) -> Tensor:
    """u <- leak * u + gain * x, in place and without a temporary."""
    u.mul_(leak)
    x = x.to(u.dtype)
    return u.addcmul_(x, gain) if isinstance(gain, Tensor) else u.add_(x, alpha=gain)


class _SpikeSequence(torch.autograd.Function):
    """The recurrence above; ``leak`` and ``gain`` are floats or scalar tensors."""

    @staticmethod
    def forward(ctx, x, leak, gain, threshold, alpha):
        learned = isinstance(gain, Tensor)
        ctx.save_for_backward(x, *((leak, gain) if learned else ()))
        ctx.fixed = None if learned else (leak, gain)
        ctx.threshold, ctx.alpha = threshold, alpha
        u = torch.zeros_like(x[0], dtype=membrane_dtype(x.dtype))
        spikes = torch.empty_like(x)
        for t in range(x.shape[0]):
            _charge(u, x[t], leak, gain)
            fired = u >= threshold
            spikes[t] = fired
            u.masked_fill_(fired, 0)
        return spikes

    @staticmethod
    def backward(ctx, grad_spikes):
        x, *learned = ctx.saved_tensors
        leak, gain = ctx.fixed or learned
        threshold, alpha = ctx.threshold, ctx.alpha
        h = _SpikeSequence._membrane(x, leak, gain, threshold)
        grad_u = torch.zeros_like(h[0])
        grad_leak, grad_gain = (torch.zeros_like(p) for p in learned) if learned else (None, None)
        for t in reversed(range(x.shape[0])):
            fired = h[t] >= threshold
            sigmoid = torch.sigmoid(alpha * (h[t] - threshold))
            slope = sigmoid.mul_(1 - sigmoid).mul_(alpha)
            grad_h = grad_u.masked_fill_(fired, 0).addcmul_(grad_spikes[t].to(h.dtype), slope)
            if learned:
                grad_gain += (grad_h * x[t]).sum()
                if t > 0:
                    u_before = h[t - 1].masked_fill(h[t - 1] >= threshold, 0)
                    grad_leak += (grad_h * u_before).sum()
            h[t] = grad_h * gain  # h[t] is used up: its place takes the gradient of x[t]
            grad_u = grad_h.mul_(leak)
        return h.to(x.dtype), grad_leak, grad_gain, None, None

    @staticmethod
    def _membrane(x, leak, gain, threshold):
        """h[t] of every step, [T, ...]: before the reset, as the surrogate wants it."""
        u = torch.zeros_like(x[0], dtype=membrane_dtype(x.dtype))
        h = torch.empty(x.shape, dtype=u.dtype, device=x.device)
        for t in range(x.shape[0]):
            h[t] = _charge(u, x[t], leak, gain)
            u.masked_fill_(u >= threshold, 0)
        return h
