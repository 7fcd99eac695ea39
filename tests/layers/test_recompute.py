"""BatchNorm, pool and neuron as one node on the CPU: as one after the other, keeping less."""

import copy

import pytest
import torch
from torch import nn

from qkformer.layers import ConvBNNeuron, recompute
from qkformer.neurons import IF, LIF, PLIF

T, B, C, H, W = 4, 2, 5, 6, 8
NEURONS = [LIF(), LIF(tau=3.0, v_reset=0.1), IF(surrogate="arctan"), PLIF(init_tau=1.5)]


@pytest.fixture
def calls(monkeypatch):
    """How often the one node ran."""
    made = []
    one = recompute.bn_neuron
    monkeypatch.setattr(recompute, "bn_neuron", lambda *a, **k: made.append(1) or one(*a, **k))
    return made


def layer(neuron=None, **options) -> ConvBNNeuron:
    made = ConvBNNeuron(3, C, 3, neuron=copy.deepcopy(neuron or LIF()), **options).double()
    made.bn.bias.data.fill_(0.5)
    made.bn.weight.data.uniform_(0.5, 2)
    made.bn.running_mean.normal_()
    return made


def one_and_plain(one: ConvBNNeuron, calls: list, x: torch.Tensor, **call) -> None:
    """Spikes, gradients and buffers after two steps agree with those of a layer that is watched."""
    plain = copy.deepcopy(one)
    plain.neuron.register_forward_hook(lambda *_: None)
    for _ in range(2):
        results = []
        for made in (one, plain):
            given = x.clone().requires_grad_()
            y = made(given, **call)
            grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
            parameters = [p for p in made.parameters() if p.requires_grad]
            results.append((y, torch.autograd.grad(y, [given, *parameters], grad)))
        (y, grads), (expected, expected_grads) = results
        assert 0 < y.mean() < 1
        assert torch.equal(y, expected)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-8, atol=1e-10)
    assert len(calls) == 2
    for a, b in zip(one.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool", [None, "before", "after"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("neuron", NEURONS, ids=repr)
def test_as_one_after_the_other(calls, neuron, static, pool, layout):
    one = layer(neuron, pool=pool, bias=True).to(memory_format=layout)
    x = torch.randn(1 if static else T, B, 3, H, W, dtype=torch.float64)
    one_and_plain(one, calls, x, time_steps=T)


@pytest.mark.parametrize("case", ["frozen", "average", "untracked", "plain scale"])
def test_every_mode_of_batchnorm(calls, case):
    one = layer(pool="before")
    if case == "frozen":
        one.bn.eval()
    elif case == "average":
        one.bn.momentum = None
    elif case == "untracked":
        one.bn = nn.BatchNorm2d(C, track_running_stats=False).double()
        one.bn.bias.data.fill_(0.5)
    else:
        one.bn = nn.BatchNorm2d(C, affine=False).double()
        one.conv.weight.data *= 3
    one_and_plain(one, calls, 2 * torch.randn(T, B, 3, H, W, dtype=torch.float64))


def test_keeps_the_convolutions_output_alone():
    one, kept = layer(pool="before"), []
    x = torch.randn(T, B, 3, H, W, dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        one(x)
    large = {t.data_ptr() for t in kept if t.numel() >= T * B * C * H * W // 4}
    assert len(large) == 2  # that of the convolution, and its input


@pytest.mark.parametrize("pool", [None, "before"])
def test_without_gradients_spikes_take_the_place_of_currents_and_harm_nothing_else(calls, pool):
    one = layer(pool=pool).eval()
    folded = copy.deepcopy(one)
    folded.conv = nn.utils.fusion.fuse_conv_bn_eval(one.conv, one.bn)
    folded.bn = nn.Identity()
    x = torch.randn(T, B, 3, H, W, dtype=torch.float64)
    given = x.clone()
    expected = one(given)
    with torch.no_grad():
        assert torch.equal(one(given), expected)
        assert torch.equal(folded(given), expected)
        assert len(calls) == 3
        seen = []
        folded.conv.register_forward_hook(lambda _m, _i, y: seen.append((y, y.clone())))
        assert torch.equal(folded(given), expected)
    assert len(calls) == 3  # a hook's output stays as it was
    assert torch.equal(*seen[0])
    assert torch.equal(given, x)


def test_sixteen_bit_currents_with_float32_statistics(calls):
    one = layer().float()
    x = torch.randn(T, B, 3, H, W)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = one(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert 0 < y.float().mean() < 1
    assert one.bn.weight.grad.dtype == one.conv.weight.grad.dtype == torch.float32
    assert len(calls) == 1


@pytest.mark.parametrize("watched", ["bn", "neuron", "everything"])
def test_hooks_see_what_is_in_between(calls, watched):
    one, seen = layer(), []
    x = torch.randn(T, B, 3, H, W, dtype=torch.float64)
    if watched == "everything":
        hook = nn.modules.module.register_module_forward_hook(lambda *call: seen.append(call[0]))
    else:
        hook = getattr(one, watched).register_forward_hook(lambda *call: seen.append(call[0]))
    one(x)
    hook.remove()
    assert not calls
    assert getattr(one, "neuron" if watched == "everything" else watched) in seen


def test_a_batch_of_one_value_is_refused():
    one = ConvBNNeuron(3, C, neuron=LIF())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        one(torch.randn(1, 1, 3, 1, 1))
