"""Q-K token attention's mask in one kernel, compiled by g++, against its steps in PyTorch."""

import copy

import pytest
import torch

from qkformer.layers import QKTokenAttention
from qkformer.neurons import IF, LIF, PLIF
from qkformer.neurons.cuda import launch, loader
from qkformer.neurons.cuda.token_mask import (
    token_mask,
    token_mask_backward_op,
    token_mask_op,
)
from qkformer.neurons.reference import membrane_dtype, spike_sequence


def steps(q, k, *, heads, **neuron):
    q, k = (x.unflatten(2, (heads, -1)) for x in (q, k))
    return (spike_sequence(q.sum(3, keepdim=True), **neuron) * k).flatten(2, 3)


def spikes(shape, dtype, seed, rate=0.2):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < rate).to(dtype)


@pytest.mark.parametrize("dtype", tuple(loader.DTYPES), ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("T", "heads", "shape", "tau"),
    [
        (1, 1, (2, 5, 3, 3), None),
        (4, 2, (3, 6, 4, 5), 0.5),
        (4, 6, (1, 6, 1, 1), 0.5),
        (40, 3, (2, 9, 2, 3), "learned"),
    ],
)
def test_agrees_with_its_steps(host, monkeypatch, T, heads, shape, tau, last, dtype):
    monkeypatch.setattr(launch, "WORK_THREADS", 7)
    q, k = (spikes((T, *shape), dtype, seed) for seed in range(2))
    grad = torch.randn((T, *shape), generator=torch.Generator().manual_seed(2)).to(dtype)
    if last:
        q = q.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    results = []
    for function, real in ((token_mask, dtype), (steps, torch.float64)):
        leaves = [q.to(real).requires_grad_(), k.to(real).requires_grad_()]
        reciprocal_tau = tau
        if tau == "learned":
            reciprocal_tau = torch.tensor(0.3, dtype=membrane_dtype(real), requires_grad=True)
            leaves.append(reciprocal_tau)
        neuron = dict(v_threshold=0.5, v_reset=-0.1, alpha=3.0, reciprocal_tau=reciprocal_tau)
        out = function(*leaves[:2], heads=heads, **neuron)
        results.append((out, *torch.autograd.grad(out, leaves, grad.to(real))))
    (out, *grads), (expected, *expected_grads) = results
    assert host.launched == ["token_mask", "token_mask_backward"]
    assert out.dtype == dtype and out.stride() == q.stride()
    assert torch.equal(out.double(), expected)
    last_place = torch.finfo(dtype).eps
    for got, exact in zip(grads, expected_grads, strict=True):
        scale = exact.abs().max().item()
        torch.testing.assert_close(got.double(), exact, rtol=last_place, atol=1e-5 * scale)


@pytest.mark.parametrize("neuron", [LIF, IF, PLIF])
def test_attention_takes_it(host, neuron):
    torch.manual_seed(0)
    ours = QKTokenAttention(8, 2, neuron=lambda **kw: neuron(backend="cupy", **kw)).double()
    theirs = copy.deepcopy(ours)
    for module in theirs.modules():
        if isinstance(module, neuron):
            module.backend = "torch"
    x = spikes((4, 2, 8, 3, 4), torch.float64, 0)
    outputs = [layer(x) for layer in (ours, theirs)]
    assert "token_mask" in host.launched
    assert torch.equal(*outputs)
    for y in outputs:
        y.square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=1e-7)
    host.launched.clear()
    seen = []
    ours.mask_neuron.register_forward_hook(lambda *call: seen.append(call[2]))
    assert ours(x).shape == x.shape
    assert seen[0].shape == (4, 2, 2, 1, 3, 4)
    assert "token_mask" not in host.launched


@pytest.mark.parametrize("learned", [False, True])
def test_opcheck(host, learned):
    q, k = (spikes((8, 6, 2, 3), torch.float32, seed).requires_grad_() for seed in range(2))
    tau = torch.tensor(0.4, requires_grad=True) if learned else None
    constants = (None if learned else 0.5, 0.5, 0.0, 4.0, 4, 3)
    torch.library.opcheck(token_mask_op, (q, k, tau, *constants))
    inputs = (torch.randn(8, 6, 2, 3), q.detach(), k.detach(), tau.detach() if learned else None)
    torch.library.opcheck(token_mask_backward_op, (*inputs, *constants))
