"""A neuron's sequence in plain PyTorch as one node of the autograd graph, in few passes.

The arithmetic is that of ``reference.step``, operation by operation.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qkformer.neurons.reference import membrane_dtype

GRAIN_SIZE = 32_768  # elements that PyTorch's elementwise operations on the CPU give each thread


class SpikeSequence(torch.autograd.Function):
    """The recurrence, and its gradient from the input alone.

    Both follow ``u = -v``, the membrane potential with its sign turned. It rounds as ``v`` does,
    and ``threshold_``, the one operation that resets in a single vectorised pass, keeps what is
    *above* a threshold, and NaN.
    """

    @staticmethod
    def forward(ctx, x, reciprocal_tau, v_threshold, v_reset, alpha, surrogate):
        learned = isinstance(reciprocal_tau, Tensor)
        ctx.save_for_backward(x, *((reciprocal_tau,) if learned else ()))
        ctx.reciprocal_tau = None if learned else reciprocal_tau
        ctx.constants = (v_threshold, v_reset, alpha, surrogate)
        return spikes_of(x, reciprocal_tau, v_threshold, v_reset)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_spikes):
        x, *learned = ctx.saved_tensors
        reciprocal_tau = learned[0] if learned else ctx.reciprocal_tau
        grads = gradients_of(x, grad_spikes, reciprocal_tau, *ctx.constants)
        return *grads, None, None, None, None


def spikes_of(
    x: Tensor,
    reciprocal_tau: float | Tensor | None,
    v_threshold: float,
    v_reset: float,
    *,
    in_place: bool = False,
) -> Tensor:
    """Spikes of currents x [T, ...]; ``in_place``: over x, where its time steps are dense."""
    order = _memory_order(x)
    rows = _rows(x, order)
    spikes = rows if in_place else torch.empty_like(rows, memory_format=torch.contiguous_format)
    for scratch, currents, fired in _pieces(2, rows, spikes):
        u, drive = scratch.unbind()
        u.fill_(-v_reset)
        for current, out in zip(currents, fired, strict=True):
            _charge(u, current, reciprocal_tau, v_reset, drive=drive, out=u)
            torch.le(u, -v_threshold, out=out)
            torch.threshold_(u, -v_threshold, -v_reset)
    return _like(spikes, x, order)


def gradients_of(
    x: Tensor,
    grad_spikes: Tensor,
    reciprocal_tau: float | Tensor | None,
    v_threshold: float,
    v_reset: float,
    alpha: float,
    surrogate: str,
    *,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x, ``in_place`` as for :func:`spikes_of`, and of a learned 1 / tau, or None."""
    order = _memory_order(x)
    rows, grad_spikes = _rows(x, order), _rows(grad_spikes, order)
    grad_x = rows if in_place else torch.empty_like(rows, memory_format=torch.contiguous_format)
    T, learned = len(x), isinstance(reciprocal_tau, Tensor)
    lines = T + 1 + (T if learned else 1)
    grads_tau = [
        _backward(*piece, reciprocal_tau, v_threshold, v_reset, alpha, surrogate)
        for piece in _pieces(lines, rows, grad_spikes, grad_x)
    ]
    return _like(grad_x, x, order), sum(grads_tau) if learned else None


def _backward(
    scratch: Tensor,
    x: Tensor,
    grad_spikes: Tensor,
    grad_x: Tensor,
    reciprocal_tau: float | Tensor | None,
    v_threshold: float,
    v_reset: float,
    alpha: float,
    surrogate: str,
) -> Tensor | None:
    """Write the gradient of x [T, n] to ``grad_x``; return that of a learned 1 / tau, or None."""
    learned = isinstance(reciprocal_tau, Tensor)
    u, line, drives = scratch[: len(x)], scratch[len(x)], scratch[len(x) + 1 :]
    _membrane(x, reciprocal_tau, v_threshold, v_reset, u, line, drives)
    leak = 1.0 if reciprocal_tau is None else 1 - reciprocal_tau
    slope = _SLOPES[surrogate](alpha, v_threshold, u)
    factor = alpha if surrogate == "sigmoid" else alpha / 2  # left for the end
    scale = factor if reciprocal_tau is None else factor * reciprocal_tau
    kept = line
    later, grad_tau = None, 0.0
    for t in reversed(range(len(x))):
        here = u[t]
        if later is not None:  # what reaches this step passes where it did not fire
            torch.ops.aten.threshold_backward(later, here, -v_threshold, grad_input=kept)
        grad_v = slope(here, grad_spikes[t].to(u.dtype))
        if later is not None:
            grad_v.add_(kept.mul_(leak))
        later = grad_v  # but for the factor
        torch.mul(grad_v, scale, out=grad_x[t])
        if learned:  # dv[t] / d(1 / tau) = x[t] - (v[t-1] - v_reset)
            grad_tau = grad_tau + (grad_v * drives[t]).sum() * factor
    return grad_tau if learned else None


# Both surrogates' derivatives are even, and so the same for u as for v. Each function makes one
# that turns u into the gradient of v but for a constant factor, from that of the spikes, in place.


def _sigmoid(alpha: float, v_threshold: float, u: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    shift = torch.full((), alpha * v_threshold, dtype=u.dtype, device=u.device)

    def slope(here: Tensor, grad_spike: Tensor) -> Tensor:
        torch.add(shift, here, alpha=alpha, out=here).sigmoid_()
        return torch.ops.aten.sigmoid_backward(grad_spike, here, grad_input=here)

    return slope


def _arctan(alpha: float, v_threshold: float, u: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def slope(here: Tensor, grad_spike: Tensor) -> Tensor:
        here.add_(v_threshold).mul_(math.pi / 2 * alpha).square_().add_(1)
        return torch.div(grad_spike, here, out=here)

    return slope


_SLOPES = {"sigmoid": _sigmoid, "arctan": _arctan}


def _membrane(
    x: Tensor,
    reciprocal_tau: float | Tensor | None,
    v_threshold: float,
    v_reset: float,
    u: Tensor,
    after_reset: Tensor,
    drives: Tensor,
) -> None:
    """Fill ``u`` [T, n] with -v of every step before the reset, as the surrogate wants it.

    ``drives`` gets what drove it: every step's, which a learned 1 / tau has a use for, or, where it
    has one line, nothing to keep. ``after_reset`` [n] is where it works.
    """
    after_reset.fill_(-v_reset)
    for t in range(len(x)):
        drive = drives[t % len(drives)]
        _charge(after_reset, x[t], reciprocal_tau, v_reset, drive=drive, out=u[t])
        torch.threshold(u[t], -v_threshold, -v_reset, out=after_reset)


def _charge(
    u: Tensor,
    x: Tensor,
    reciprocal_tau: float | Tensor | None,
    v_reset: float,
    *,
    drive: Tensor,
    out: Tensor,
) -> None:
    """v <- v + (x - (v - v_reset)) / tau, or v + x without leak; from ``u = -v`` to ``out``."""
    if reciprocal_tau is None:
        torch.sub(u, x, out=out)
        return
    # Neither lerp nor (1 - 1/tau) v + x / tau: they round differently, lerp of inf is NaN.
    torch.add(x, u if v_reset == 0 else u + v_reset, out=drive)
    if isinstance(reciprocal_tau, float) and math.frexp(reciprocal_tau)[0] == 0.5:
        torch.sub(u, drive, alpha=reciprocal_tau, out=out)  # a power of two: the product is exact
    else:
        torch.sub(u, drive * reciprocal_tau, out=out)


def _memory_order(x: Tensor) -> list[int]:
    """The axes behind T, from slow to fast, whatever the memory format."""
    return sorted(range(1, x.ndim), key=x.stride, reverse=True)


def _rows(x: Tensor, order: list[int]) -> Tensor:
    """[T, ...] -> [T, n], a view where each time step is dense."""
    return x.permute(0, *order).reshape(len(x), math.prod(x.shape[1:]))


def _like(rows: Tensor, x: Tensor, order: list[int]) -> Tensor:
    """[T, n] in ``order`` -> the shape and the memory format of ``x``."""
    shape = [x.shape[axis] for axis in order]
    return rows.view(len(x), *shape).permute(0, *(order.index(i) + 1 for i in range(1, x.ndim)))


def _pieces(lines: int, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """[T, n] cut across n into what stays in a CPU core's cache through all time steps.

    With each piece comes room for ``lines`` time steps of it, the same memory for all pieces.
    Fewer and longer pieces wait less often for all threads, shorter ones fit smaller caches.
    """
    n = rows[0].shape[1]
    length = max(n, 1)
    if rows[0].device.type == "cpu" and not torch.compiler.is_compiling():
        length = 4 * GRAIN_SIZE * torch.get_num_threads()
    dtype = membrane_dtype(rows[0].dtype)
    scratch = torch.empty(lines * min(n, length), dtype=dtype, device=rows[0].device)
    for piece in zip(*(r.split(length, dim=1) for r in rows), strict=True):
        m = piece[0].shape[1]
        yield scratch[: lines * m].view(lines, m), *piece
