"""Q-K attention's masks in one kernel, compiled by g++, against their steps in PyTorch."""

import copy

import pytest
import torch
from mask_reference import mask_problem, masks_agree, qk_mask_steps

from qkformer.layers import QKChannelAttention, QKTokenAttention
from qkformer.layers.attention import SpikeMask
from qkformer.neurons import IF, LIF, PLIF
from qkformer.neurons.cuda import loader
from qkformer.neurons.cuda import qk_mask as kernels
from qkformer.neurons.cuda.qk_mask import qk_mask, qk_mask_backward_op, qk_mask_op

KERNELS = ["qk_mask", "qk_mask_backward"]
CASES = [  # T, heads, [B, C, H, W], 1 / tau; heads of None: channel attention
    (1, 1, (2, 5, 3, 3), None),
    (1, None, (2, 5, 3, 3), None),
    (4, 2, (3, 8, 4, 5), 0.5),
    (4, 6, (1, 6, 1, 1), 0.5),
    (4, 1, (2, 520, 1, 2), 0.5),
    (4, None, (3, 32, 7, 7), 0.5),
    (4, None, (2, 3, 1, 1), 0.5),
    (4, None, (2, 4, 33, 34), 0.5),
    (6, None, (2, 36, 2, 2), None),
    (16, 2, (2, 12, 3, 6), "learned"),
    (16, None, (2, 6, 3, 6), "learned"),
    (40, 3, (3, 45, 2, 3), "learned"),
    (40, None, (4, 9, 3, 3), "learned"),
]
ALL = tuple(loader.DTYPES)
COMBINED = [(*case, t) for case in CASES for t in (ALL if case[0] in (4, 40) else ALL[1:2])]


@pytest.fixture(autouse=True)
def whole_blocks(host, monkeypatch):
    monkeypatch.setattr(loader, "BLOCK", 256)
    kernels._teams.cache_clear()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("T", "heads", "shape", "tau", "dtype"), COMBINED, ids=str)
def test_agrees_with_its_steps(host, monkeypatch, T, heads, shape, tau, last, dtype):
    monkeypatch.setattr(kernels, "WORK_THREADS", 300)  # one block
    tensors = mask_problem((T, *shape), heads, last=last, dtype=dtype)
    out = masks_agree(tensors, heads, tau)
    assert host.launched == KERNELS
    assert out.dtype == dtype and out.stride() == tensors[0].stride()


@pytest.mark.parametrize("enough", [1, 512])
def test_any_width_of_a_block_will_do(host, monkeypatch, enough):
    """Where there are many neurons, a block takes more of them."""
    monkeypatch.setattr(kernels, "ENOUGH_BLOCKS", enough)
    kernels._teams.cache_clear()
    q, k, _ = mask_problem((4, 2, 136, 5, 5), None, last=True)
    neuron = dict(reciprocal_tau=0.5, v_threshold=0.5)
    expected = qk_mask_steps(q, k, heads=None, **neuron)
    assert torch.equal(qk_mask(q, k, heads=None, **neuron), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("heads", [2, None])
def test_infinities_and_nans_go_where_the_steps_send_them(host, heads, last, dtype):
    tensors = mask_problem((4, 8, 16, 3, 5), heads, last=last, dtype=dtype)
    for seed, tensor in enumerate(tensors):
        generator = torch.Generator().manual_seed(seed)
        for value in (torch.inf, -torch.inf, torch.nan):
            tensor[torch.rand(tensor.shape, generator=generator) < 1e-3] = value
    *inputs, grad = tensors
    results = []
    for function in (qk_mask, qk_mask_steps):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves, heads=heads, reciprocal_tau=0.5, v_threshold=0.5)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    (out, *grads), (expected, *expected_grads) = results
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert 0 < out.isnan().sum() < out.isinf().sum() + out.isnan().sum() < out.numel() / 10
    tolerance = 4 * torch.finfo(dtype).eps
    for got, exact in zip(grads, expected_grads, strict=True):
        finite = exact.isfinite()  # autograd takes inf from inf where the kernel scales it once
        assert 0 < finite.sum() < finite.numel() and torch.equal(got.isfinite(), finite)
        torch.testing.assert_close(got[finite], exact[finite], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("neuron", [LIF, IF, PLIF])
@pytest.mark.parametrize(
    ("kind", "fed"),
    [(QKTokenAttention, (4, 2, 2, 1, 3, 4)), (QKChannelAttention, (4, 2, 8, 1, 1))],
)
def test_attention_takes_it(host, kind, fed, neuron, last):
    torch.manual_seed(0)
    ours = kind(8, 2, neuron=lambda **kw: neuron(backend="cupy", **kw)).double()
    if last:
        ours.to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    for module in theirs.modules():
        if isinstance(module, neuron):
            module.backend = "torch"
    x = (torch.rand(4, 2, 8, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.2).double()
    outputs = [layer(x) for layer in (ours, theirs)]
    assert host.launched.count("qk_mask") == 1
    assert torch.equal(*outputs)
    for y in outputs:
        y.square().sum().backward()
    assert host.launched.count("qk_mask_backward") == 1
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=1e-7)
    host.launched.clear()
    seen = []
    ours.mask_neuron.register_forward_hook(lambda *call: seen.append(call[2]))
    assert ours(x).shape == x.shape
    assert seen[0].shape == fed
    assert "qk_mask" not in host.launched


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("heads", [3, None])
def test_opcheck(host, heads, learned):
    q, k, grad = (x.flatten(0, 1) for x in mask_problem((4, 2, 6, 2, 3), heads))
    tau = torch.tensor(0.4, requires_grad=True) if learned else None
    constants = (None if learned else 0.5, 0.5, 0.0, 4.0, 4, heads, "sigmoid")
    torch.library.opcheck(qk_mask_op, (q.requires_grad_(), k.requires_grad_(), tau, *constants))
    inputs = (grad, q.detach(), k.detach(), tau.detach() if learned else None)
    torch.library.opcheck(qk_mask_backward_op, (*inputs, *constants))


def test_more_channels_than_were_summed_go_through_the_steps(host):
    q, k = ((torch.rand(4, 2, c, 3, 3) < 0.4).float() for c in (4, 8))
    ours, theirs = (SpikeMask(2)(q, k, LIF(backend=backend)) for backend in ("cupy", "torch"))
    assert 0 < theirs.mean() < k.mean()
    assert torch.equal(ours, theirs)
    assert "qk_mask" not in host.launched


@pytest.mark.parametrize("heads", [2, None])
def test_nothing_to_mask(host, heads):
    q = torch.zeros(4, 0, 6, 2, 3, requires_grad=True)
    out = qk_mask(q, q, heads=heads, reciprocal_tau=0.5)
    out.sum().backward()
    assert out.shape == q.grad.shape == q.shape
    assert host.launched == []
