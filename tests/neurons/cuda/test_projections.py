"""q, k and v as one product and one kernel: the same as each by itself."""

import copy

import pytest
import torch
from conftest import with_spikes
from same import assert_same_step
from torch import nn

from qkformer.layers import ConvBNNeuron, QKTokenAttention, SpikingSelfAttention
from qkformer.layers.projections import project, project_to_heads, split_heads
from qkformer.neurons import IF, LIF, PLIF

T, B, C = 4, 2, 8


def layers(count=3, *, neuron=LIF, bias=False, dtype=torch.float64, **options):
    torch.manual_seed(0)
    made = nn.ModuleList(
        ConvBNNeuron(C, C, bias=bias, neuron=neuron(backend="cupy", **options))
        for _ in range(count)
    )
    for layer in made:
        layer.bn.weight.data.uniform_(-1.5, 1.5)
        layer.bn.bias.data.uniform_(0, 1)
        layer.bn.running_mean.normal_()
        layer.bn.running_var.uniform_(0.3, 0.8)
    return made.to(dtype)


def spikes(shape=(T, B, C, 3, 4), dtype=torch.float64):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4).to(dtype)


def same_step(ours, theirs, x):
    """Outputs, gradients and buffers of `project` against those of one layer after the other."""
    x, x_ = x.clone().requires_grad_(), x.clone().requires_grad_()
    together, apart = project(list(ours), x), [layer(x_) for layer in theirs]
    for one, other in zip(together, apart, strict=True):
        assert 0 < other.mean() < 1
        assert torch.equal(one, other)
    grads = [torch.randn_like(one) for one in apart]
    torch.autograd.backward(list(together), grads)
    torch.autograd.backward(apart, grads)
    torch.testing.assert_close(x.grad, x_.grad)
    assert_same_step(ours, theirs)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("count", "bias", "neuron"), [(2, False, LIF), (3, True, LIF), (3, False, IF)]
)
@pytest.mark.parametrize("size", [(3, 4), (2, 4), (1, 1)], ids=str)
def test_together_as_apart(host, count, bias, neuron, training, last, size):
    ours = layers(count, neuron=neuron, bias=bias).train(training)
    if last:
        ours.to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    x = spikes((T, 3, C, *size))
    if last:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, 3))
    same_step(ours, theirs, x)
    host.launched.clear()
    project(list(ours), x)
    assert host.launched.count("forward") == 1


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("count", "heads"), [(2, 4), (3, 2), (3, 1)])
def test_heads_are_put_apart_by_the_kernel(host, count, heads, last):
    ours = layers(count, bias=True)
    x = spikes((T, 3, C, 3, 4))
    if last:
        ours.to(memory_format=torch.channels_last)
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, 3))
    theirs = copy.deepcopy(ours)
    x, x_ = x.clone().requires_grad_(), x.clone().requires_grad_()
    together = project_to_heads(list(ours), x, heads)
    apart = [split_heads(layer(x_), heads) for layer in theirs]
    for one, other in zip(together, apart, strict=True):
        assert 0 < other.mean() < 1
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
    grads = [torch.randn_like(one) for one in apart]
    torch.autograd.backward(list(together), grads)
    torch.autograd.backward(apart, grads)
    torch.testing.assert_close(x.grad, x_.grad)
    assert_same_step(ours, theirs)


@pytest.mark.parametrize("steps", [1, 16, 40])
def test_any_number_of_time_steps(host, steps):
    ours = layers()
    same_step(ours, copy.deepcopy(ours), spikes((steps, 2, C, 2, 2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_precision(host, dtype):
    ours, x = layers(dtype=torch.float32).eval(), spikes(dtype=torch.float32)
    theirs = copy.deepcopy(ours)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        together, apart = project(list(ours), x), [layer(x) for layer in theirs]
    for one, other in zip(together, apart, strict=True):
        assert one.dtype == other.dtype == dtype
        assert (one != other).float().mean() < 0.01  # the product may be summed in another order


@pytest.mark.parametrize(
    "change",
    [
        lambda ones: ones[1].bn.eval(),
        lambda ones: setattr(ones[1].neuron, "v_threshold", 0.5),
        lambda ones: setattr(ones[2], "neuron", PLIF(backend="cupy").double()),
        lambda ones: setattr(ones[0], "bn", nn.BatchNorm2d(C, eps=1e-3).double()),
        lambda ones: ones[0].bn.register_parameter("bias", None),
        lambda ones: setattr(ones[1], "bn", ones[0].bn),
        lambda ones: ones[2].neuron.register_forward_hook(lambda *_: None),
        lambda ones: ones[2].register_forward_hook(lambda *_: None),
        lambda ones: setattr(ones[0].neuron, "backend", "torch"),
    ],
    ids=["mode", "threshold", "plif", "eps", "bias", "shared", "neuron-hook", "hook", "backend"],
)
def test_layers_that_differ_go_one_by_one(host, change):
    ours = layers()
    change(ours)
    same_step(ours, copy.deepcopy(ours), spikes())
    host.launched.clear()
    project(list(ours), spikes())
    assert host.launched.count("forward") >= 2


@pytest.mark.parametrize("attention", [QKTokenAttention, SpikingSelfAttention])
def test_attention_projects_together(host, attention):
    torch.manual_seed(0)
    ours = attention(C, 2, neuron=lambda **options: LIF(backend="cupy", **options)).double()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 1.0)
    theirs = copy.deepcopy(ours)
    for module in theirs.modules():
        if isinstance(module, LIF):
            module.backend = "torch"
    x = spikes()
    expected, _ = with_spikes(theirs, x)
    assert torch.equal(ours(x), expected)
    assert (
        host.launched.count("forward") == {QKTokenAttention: 2, SpikingSelfAttention: 3}[attention]
    )
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
