"""ConvBNNeuron and whole models through the kernels, compiled by g++: nothing else changes."""

import copy

import pytest
import torch
from conftest import make_model, with_spikes
from same import assert_same_step
from torch import nn

import qkformer
from qkformer.layers import ConvBNNeuron
from qkformer.neurons import LIF, PLIF

T, B = 4, 2
STATISTICS = ["moments", "batch_norm"]
FUSED = [*STATISTICS, "forward", "reduce", "gradients", "backward"]
POOLED = [*STATISTICS, "pooled_forward", "pooled_backward", "gradients", "pooled_gather"]


def pair(dtype=torch.float64, neuron=LIF, **options) -> tuple[ConvBNNeuron, ConvBNNeuron]:
    """The same layer on the kernels and on PyTorch."""
    torch.manual_seed(0)
    ours = ConvBNNeuron(3, 8, 3, bias=True, neuron=neuron(backend="cupy"), **options)
    ours.bn.weight.data.uniform_(-1.5, 1.5)
    ours.bn.bias.data.uniform_(0, 1)
    ours.bn.running_mean.normal_()
    ours.bn.running_var.uniform_(0.3, 0.8)
    ours = ours.to(dtype)
    theirs = copy.deepcopy(ours)
    theirs.neuron.backend = "torch"
    return ours, theirs


def same_step(ours: nn.Module, theirs: nn.Module, x: torch.Tensor, **call) -> None:
    """A forward and backward give the same output, gradients and buffers."""
    x, x_ = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, y_ = ours(x, **call), theirs(x_, **call)
    assert 0 < y_.mean() < 1
    assert torch.equal(y, y_)
    grad = torch.randn_like(y)
    y.backward(grad)
    y_.backward(grad)
    torch.testing.assert_close(x.grad, x_.grad)
    assert_same_step(ours, theirs)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("pool", [None, "before", "after"])
def test_training_steps(host, pool, static, last):
    ours, theirs = pair(pool=pool, neuron=PLIF if static else LIF)
    if last:
        ours.to(memory_format=torch.channels_last)
    for seed in range(2):
        torch.manual_seed(seed)
        host.launched.clear()
        x = torch.randn(1 if static else T, B, 3, 5, 8, dtype=torch.float64)
        same_step(ours, theirs, x, time_steps=T)
        assert host.launched == (POOLED if pool == "before" else FUSED)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.eval(),
        lambda layer: layer.bn.eval(),
        lambda layer: setattr(layer.bn, "momentum", None),
        lambda layer: setattr(layer.bn, "momentum", 0.3),
        lambda layer: setattr(layer, "bn", nn.BatchNorm2d(8, track_running_stats=False)),
        lambda layer: setattr(layer, "bn", nn.BatchNorm2d(8, track_running_stats=False).eval()),
        lambda layer: setattr(layer, "bn", nn.BatchNorm2d(8, affine=False)),
        lambda layer: layer.bn.requires_grad_(False).eval(),
    ],
    ids=["eval", "frozen", "average", "momentum", "no-statistics", "no-statistics-eval",
         "no-affine", "fixed"],
)  # fmt: skip
def test_modes_of_batch_norm(host, change, static):
    ours, theirs = pair()
    for layer in (ours, theirs):
        change(layer)
        layer.double()
    torch.manual_seed(1)
    x = torch.randn(1 if static else T, B, 3, 4, 6, dtype=torch.float64)
    x_ = x.clone()
    for _ in range(3):
        y, y_ = ours(x, time_steps=T), theirs(x_, time_steps=T)
        assert torch.equal(y, y_)
        y.sum().backward()
        y_.sum().backward()
    assert set(host.launched) <= {*FUSED, "fixed_norm"} and "forward" in host.launched
    assert_same_step(ours, theirs)


@pytest.mark.parametrize("pool", [None, "before", "after"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_residuals_are_added(host, dtype, pool):
    """Also one of another dtype, as autocast may leave it."""
    ours, theirs = pair(pool=pool)
    x = torch.randn(T, B, 3, 4, 6, dtype=torch.float64)
    plain = ours(x)
    residual = torch.randint(5, plain.shape).to(dtype).requires_grad_()
    for layer in (ours, theirs):
        residual.grad = None
        total = layer(x, residual=residual)
        assert torch.equal(total, plain + residual)
        total.sum().backward()
        assert torch.equal(residual.grad, torch.ones_like(residual))


def test_hooks_see_what_is_in_between(host):
    ours, theirs = pair()
    x = torch.randn(T, B, 3, 4, 4, dtype=torch.float64)
    for name in ("conv", "bn", "neuron"):
        seen = []
        hook = getattr(ours, name).register_forward_hook(
            lambda _module, _inputs, output, seen=seen: seen.append(output)
        )
        y = ours(x)
        hook.remove()
        assert len(seen) == 1
    assert torch.equal(seen[0], y)
    for _ in range(3):
        theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    host.launched.clear()
    same_step(ours, theirs, x)
    assert host.launched == FUSED


@pytest.mark.parametrize("pool", [None, "before", "after"])
def test_folded_layers_are_one_convolution_and_one_kernel(host, pool):
    """Without its bias, which costs a pass over memory, but with its gradient."""
    ours, theirs = (qkformer.fuse_for_inference(layer) for layer in pair(pool=pool))
    x = torch.randn(T, B, 3, 5, 8, dtype=torch.float64)
    hook = theirs.conv.register_forward_hook(lambda *_: None)
    same_step(ours, theirs, x)
    assert host.launched[0] == ("pooled_forward" if pool == "before" else "forward")
    hook.remove()


@pytest.mark.parametrize("training", [True, False])
def test_the_kernel_adds_the_convolutions_bias(host, training, monkeypatch):
    ours, theirs = pair()
    biases = []
    plain = nn.Conv2d._conv_forward
    monkeypatch.setattr(
        nn.Conv2d,
        "_conv_forward",
        lambda conv, x, weight, bias: biases.append(bias) or plain(conv, x, weight, bias),
    )
    same_step(ours.train(training), theirs.train(training), torch.randn(T, B, 3, 5, 8).double())
    assert biases[0] is None and biases[1] is theirs.conv.bias
    assert training == (ours.conv.bias.grad == 0).all()  # BatchNorm takes out what it adds


def test_other_norms_and_neurons_go_one_by_one(host):
    ours, theirs = pair()
    x = torch.randn(T, B, 3, 4, 4, dtype=torch.float64)
    ours.bn = nn.SyncBatchNorm.convert_sync_batchnorm(ours.bn)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    ours.bn = theirs.bn = nn.Identity()  # folded
    same_step(ours, theirs, 5 * x)

    class Twice(LIF):
        def multi_step_forward(self, x_seq):
            return super().multi_step_forward(2 * x_seq)

    ours.neuron, theirs.neuron = Twice(backend="cupy"), Twice(backend="torch")
    assert torch.equal(ours(x), theirs(x))


def test_one_value_per_channel_is_batch_norms_own_error(host):
    ours, _ = pair()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(torch.randn(1, 1, 3, 1, 1, dtype=torch.float64), time_steps=T)


def test_an_average_of_batches_that_nothing_counts_stays(host):
    """As in PyTorch's BatchNorm; the kernel would read the count."""
    ours, _ = pair()
    ours.bn.momentum = ours.bn.num_batches_tracked = None
    expected = copy.deepcopy(ours.bn)
    x = torch.randn(T, B, 3, 4, 6, dtype=torch.float64)
    assert 0 < ours(x).mean() < 1
    expected(ours.conv(x.flatten(0, 1)))
    torch.testing.assert_close(ours.bn.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_tensors_of_other_shapes_are_refused(host):
    """Which on a GPU would be read and written beyond their ends."""
    ours, _ = pair()
    x = torch.randn(T, B, 3, 4, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="of the spikes' shape"):
        ours(x, residual=ours(x)[:1])
    ours.bn = nn.BatchNorm2d(4).double()
    with pytest.raises(ValueError, match="BatchNorm of 4 channels"):
        ours(x)


def test_constant_channels_keep_a_variance_of_zero(host):
    ours, _ = pair(torch.float32)
    ours.conv.weight.data.zero_()
    for _ in range(50):
        ours(torch.randn(T, B, 3, 4, 4))
    assert (ours.bn.running_var >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(host, dtype):
    """The convolution's output is 16 bits wide, BatchNorm's parameters and statistics are not."""
    ours, theirs = pair(torch.float32)
    x = torch.randn(T, B, 3, 6, 6)
    with torch.autocast("cpu", dtype=dtype):
        y, y_ = ours(x), theirs(x)
    assert host.launched == [*STATISTICS, "forward"]
    assert y.dtype == y_.dtype == dtype
    assert (y != y_).float().mean() < 0.01  # the kernel does not round what enters the neuron
    y.float().sum().backward()
    y_.float().sum().backward()
    assert (ours.conv.bias.grad == 0).all()  # as it should be; theirs is what rounding left
    theirs.conv.bias.grad.zero_()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        torch.testing.assert_close(a.grad, b.grad, rtol=0.1, atol=0.05 * b.grad.abs().max().item())
    # the convolution rounds the sum with its bias
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pool", [None, "before"])
def test_keeps_the_convolutions_input_and_output_and_no_more(host, pool):
    ours, _ = pair(torch.float32, pool=pool)
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(T, B, 3, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = ours(x)
    assert y.requires_grad
    convolved = x.nbytes * 8 // 3
    parameters = 4 * (8 * 3 * 3 * 3 + 4 * 8)  # weights; BatchNorm's table
    assert sum(kept.values()) == x.nbytes + convolved + parameters


@pytest.mark.parametrize("pool", [None, "before"])
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_graph_breaks(host, training, pool):
    ours, theirs = pair(pool=pool, neuron=PLIF)
    ours.train(training).compile(backend="aot_eager", fullgraph=True)
    for _ in range(2):
        same_step(ours, theirs.train(training), torch.randn(T, B, 3, 6, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("qkformer_2_256", {"neuron": "plif", "attn_scale": 2.0}, 32),
        ("qkformer_2_256", {"ssa": "original", "attn_scale": 2.0}, 32),
        ("ms_qkformer_2_256", {"attn_scale": 2.0}, 32),
        ("maxformer_2_256", {"attn_scale": 2.0}, 32),
        ("spikformer_2_256", {"attn_scale": 2.0}, 32),
    ],
    ids=["qkformer", "original-ssa", "ms_qkformer", "maxformer", "spikformer"],
)
def test_a_training_step_of_every_family(host, name, options, size):
    """Static images, and event frames in channels last, in float64: the same to rounding."""
    ours = make_model(name, T=T, backend="cupy", **options).train()
    theirs = make_model(name, T=T, backend="torch", **options).train()
    channels = ours.in_chans
    for layout, x in (
        (torch.contiguous_format, torch.randn(B, channels, size, size)),
        (torch.channels_last, torch.rand(B, T, channels, size, size)),
    ):
        ours.to(memory_format=layout)
        with_spikes(copy.deepcopy(theirs), x.double())
        outputs = [model(x.double()) for model in (ours, theirs)]
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
        for model, y in zip((ours, theirs), outputs, strict=True):
            model.zero_grad()
            y.square().sum().backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-12)
    assert {*FUSED, *(POOLED if "spikformer" not in name else ())} <= set(host.launched)


def test_gradient_checkpointing(host):
    """Runs every kernel twice, and counts the batch once."""
    options = {"T": T, "attn_scale": 2.0, "embed_dim": 64}
    ours, theirs = (make_model("qkformer_2_256", backend="cupy", **options) for _ in range(2))
    ours.train().set_grad_checkpointing()
    theirs.train()
    x = torch.rand(B, T, ours.in_chans, 32, 32).double()
    with_spikes(copy.deepcopy(theirs), x)
    for model in (ours, theirs):
        model(x).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
