"""The masks of Q-K attention in PyTorch: what their kernel is measured by."""

import torch
from torch import Tensor

from qkformer.neurons import reference
from qkformer.neurons.cuda.qk_mask import qk_mask


def qk_mask_steps(q: Tensor, k: Tensor, *, heads: int | None, **neuron) -> Tensor:
    """Q-K token attention's mask, or with ``heads`` of None channel attention's, step by step."""
    if heads is None:
        return reference.spike_sequence(q.sum((3, 4), keepdim=True), **neuron) * k
    q, k = (x.unflatten(2, (heads, -1)) for x in (q, k))
    return (reference.spike_sequence(q.sum(3, keepdim=True), **neuron) * k).flatten(2, 3)


def mask_problem(
    shape: tuple[int, ...],
    heads: int | None,
    *,
    last: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """q and k of 0 and 1, [T, B, C, H, W], and a gradient; about one 1 in each sum over q."""
    generator = torch.Generator().manual_seed(0)
    summed = shape[3] * shape[4] if heads is None else shape[2] // heads
    q, k = (torch.rand(shape, generator=generator) < rate for rate in (0.6 / summed, 0.5))
    tensors = [x.to(dtype) for x in (q, k, torch.randn(shape, generator=generator))]
    if last:
        tensors = [x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in tensors]
    return tuple(tensors)


def masks_agree(
    tensors: tuple[Tensor, Tensor, Tensor], heads: int | None, tau: float | str | None
) -> Tensor:
    """Against float64: equal outputs, and gradients as near as rounding allows.

    Args:
        tensors: q, k and the gradient, as of :func:`mask_problem`.
        tau: 1 / tau; "learned" for PLIF's.

    Returns:
        The kernel's output.
    """
    q, k, grad = tensors
    results = []
    for function, dtype in ((qk_mask, q.dtype), (qk_mask_steps, torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k)]
        reciprocal_tau = tau
        if tau == "learned":
            reciprocal_tau = torch.tensor(0.35, dtype=torch.float64, device=q.device)
            leaves.append(reciprocal_tau.requires_grad_())
        neuron = dict(v_threshold=0.5, v_reset=-0.1, alpha=3.0, reciprocal_tau=reciprocal_tau)
        out = function(*leaves[:2], heads=heads, **neuron)
        results.append((out, *torch.autograd.grad(out, leaves, grad.to(dtype))))
    (out, *grads), (expected, *expected_grads) = results
    assert torch.equal(out.double(), expected)
    assert 0 < expected.sum() < k.double().sum()  # some pass, some do not
    last_place = torch.finfo(q.dtype).eps
    for got, exact in zip(grads, expected_grads, strict=True):
        scale = exact.abs().max().item()
        torch.testing.assert_close(got.double(), exact, rtol=last_place, atol=1e-5 * scale)
    return out
