"""Layers: against their equations written out, and the properties the models rely on."""

import copy
import itertools

import pytest
import torch
from conftest import with_spikes
from torch import nn

from qkformer.layers import (
    MIXERS,
    Conv3x3,
    ConvBNNeuron,
    EmbedSpec,
    PatchEmbed,
    QKChannelAttention,
    QKTokenAttention,
    Residual,
    SpikeDrivenAttention,
    SpikingBlock,
    SpikingSelfAttention,
    drop_path,
)
from qkformer.layers.attention import SpikeProduct, merge_heads, split_heads
from qkformer.layers.patch_embed import five_convs, sps
from qkformer.neurons import LIF

T, B, C, H, W = 3, 2, 12, 4, 6
HEADS = 3


def spikes(*shape, seed=0, rate=0.3):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) < rate).double()


def lively(layer: nn.Module, seed: int = 0) -> nn.Module:
    """The layer in float64, with weights and BatchNorm under which its neurons fire."""
    generator = torch.Generator().manual_seed(seed)
    layer = layer.double()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_(0.4, 0.3, generator=generator)
        elif isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, 3 / fan_in**0.5, generator=generator)
    return layer.eval()


def outputs_of(layer: nn.Module, x: torch.Tensor, *names: str) -> list[torch.Tensor]:
    """Outputs of the named submodules in one forward."""
    seen = {}
    hooks = [
        layer.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)
        )
        for name in names
    ]
    layer(x)
    for hook in hooks:
        hook.remove()
    return [seen[name] for name in names]


@pytest.mark.parametrize("kind", [QKTokenAttention, QKChannelAttention])
def test_qk_attention_masks_keys_by_sums_of_queries(kind):
    layer = lively(kind(C, HEADS))
    x = spikes(T, B, C, H, W)
    q, k, mask = outputs_of(layer, x, "q", "k", "mask_neuron")
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    masked = torch.empty_like(k)
    d = C // HEADS
    for b, head in itertools.product(range(B), range(HEADS)):
        channels = slice(head * d, (head + 1) * d)
        query = q[:, b, channels]  # [T, d, H, W]
        axes = 1 if kind is QKTokenAttention else (2, 3)
        attention = LIF(v_threshold=0.5)(query.sum(axes, keepdim=True))
        masked[:, b, channels] = attention * k[:, b, channels]
    assert torch.equal(layer(x), layer.proj(masked))


def test_spike_driven_attention_masks_queries_by_sums_of_keys_times_values():
    layer = lively(SpikeDrivenAttention(C, HEADS))
    x = spikes(T, B, C, H, W)
    q, k, v, mask = outputs_of(layer, x, "q", "k", "v", "mask_neuron")
    expected = LIF(v_threshold=0.5)((k * v).sum((3, 4)))
    assert 0 < expected.mean() < 1
    assert torch.equal(mask.flatten(2), expected)
    assert torch.equal(layer(x), layer.proj(q * expected[..., None, None]))
    other_heads = SpikeDrivenAttention(C, 1).double().eval()
    other_heads.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other_heads(x))


def test_pooled_spike_driven_attention_pools_spikes_and_products():
    layer = lively(SpikeDrivenAttention(C, HEADS, pooled=True))
    x = spikes(T, B, C, H, W, rate=0.1)
    q, k, v, mask = outputs_of(layer, x, "q", "k", "v", "mask_neuron")
    pool = torch.nn.MaxPool2d(3, 1, 1)
    k, v = (pool(y.flatten(0, 1)).view(x.shape) for y in (k, v))

    def over_heads(y):  # tokens times the channels of a head, as if it were an image
        y = y.reshape(T * B * HEADS, C // HEADS, H * W).transpose(1, 2)
        return pool(y).transpose(1, 2).reshape(x.shape)

    expected = LIF(v_threshold=0.5)(over_heads(k * v).sum((3, 4)))
    assert expected.mean() > 0
    assert torch.equal(mask.flatten(2), expected)
    assert torch.equal(layer(x), layer.proj(over_heads(q * expected[..., None, None])))


@pytest.mark.parametrize(("heads", "h", "w"), [(3, 4, 6), (1, 2, 5)], ids=["d<N", "d>N"])
@pytest.mark.parametrize("scale", [0.125, 0.25, None])
def test_spiking_self_attention_is_its_equation_in_either_order(heads, h, w, scale):
    layer = lively(SpikingSelfAttention(C, heads, scale=scale))
    x = spikes(T, B, C, h, w, rate=0.6)
    q, k, v, got = outputs_of(layer, x, "q", "k", "v", "attn_neuron")
    q, k, v = (s.reshape(T, B, heads, C // heads, h * w).mT for s in (q, k, v))  # [..., N, d]
    attention = torch.einsum("...nd,...md->...nm", q, k)
    expected = LIF(v_threshold=0.5)(torch.einsum("...nm,...md->...nd", attention, v) * (scale or 1))
    assert 0 < expected.mean() < 1
    assert torch.equal(got, expected.mT.reshape(got.shape))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("heads", "h", "w"), [(3, 4, 6), (1, 2, 5)], ids=["d<N", "d>N"])
def test_products_and_their_gradients_are_in_memory_as_their_operands(heads, h, w, last):
    qkv = [spikes(T, B, C, h, w, seed=seed, rate=0.6) for seed in range(3)]
    if last:
        qkv = [x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in qkv]
    outs, grads = [], []
    for product in (
        lambda q, k, v: torch.einsum("tbhdn,tbhdm,tbhem->tbhen", q, k, v) * 0.25,
        SpikeProduct(0.25),
    ):
        leaves = [x.clone().requires_grad_() for x in qkv]
        out = merge_heads(product(*(split_heads(x, heads) for x in leaves)), (h, w))
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        outs.append(out)
        grads.append(torch.autograd.grad(out, leaves, weight))
    assert torch.equal(*outs) and outs[0].max() > 1
    torch.testing.assert_close(*grads)
    assert {x.stride() for x in (outs[1], *grads[1])} == {qkv[0].stride()}


def test_original_ssa_leaks_from_sample_to_sample_and_fixed_does_not():
    fixed = lively(SpikingSelfAttention(C, HEADS, ssa="fixed"))
    original = SpikingSelfAttention(C, HEADS, ssa="original").double().eval()
    original.load_state_dict(fixed.state_dict())
    x = spikes(T, 4, C, H, W, rate=0.6)
    with_spikes(fixed, x)
    alone = torch.cat([fixed(x[:, [b]]) for b in range(4)], dim=1)
    assert torch.equal(fixed(x), alone)
    leaking = original(x)
    assert not torch.equal(leaking, torch.cat([original(x[:, [b]]) for b in range(4)], dim=1))
    # One neuron through T * B steps: the first sample of the first step is the only one unharmed.
    assert torch.equal(leaking[0, 0], alone[0, 0])
    current = copy.deepcopy(fixed.proj)
    current.neuron = None
    (attn,) = outputs_of(fixed, x, "attn_neuron")
    membrane = current(attn.reshape(x.shape))
    assert torch.equal(leaking.flatten(0, 1), LIF()(membrane.flatten(0, 1)))


@pytest.mark.parametrize("pool", [None, "before", "after"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_static_input_is_computed_once_but_counted_t_times(pool, momentum):
    repeated = ConvBNNeuron(3, 5, 3, pool=pool, neuron=LIF()).double().train()
    repeated.bn.momentum = momentum
    repeated.bn.bias.data.fill_(0.5)
    once = copy.deepcopy(repeated)
    x = torch.randn(1, B, 3, H, W, dtype=torch.float64)
    for _ in range(2):
        y, z = once(x, time_steps=T), repeated(x.expand(T, -1, -1, -1, -1))
        torch.testing.assert_close(y, z)
        target = torch.randn_like(y)
        (y * target).sum().backward()
        (z * target).sum().backward()
    for a, b in zip(once.parameters(), repeated.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(once.buffers(), repeated.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_drop_path_drops_samples_not_time_steps():
    torch.manual_seed(0)
    x = torch.ones(T, 1000, 2, 1, 1, dtype=torch.float64)
    y = drop_path(x, 0.25)
    assert torch.equal(y, y[:1, :, :1].expand_as(y))  # the same for all of a sample
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs(y.mean().item() - 1) < 0.1


@pytest.mark.parametrize("wiring", ["aba", "pa", "ms"])
def test_residual_wiring(wiring):
    branch = nn.Conv3d(C, C, 1).double()  # any module on [T, B, C, H, W] that keeps the shape
    residual = Residual(lambda x: branch(x.transpose(1, 2)).transpose(1, 2), wiring)
    x = 2 * torch.randn(T, B, C, H, W, dtype=torch.float64)
    expected = {
        "aba": lambda: x + residual.branch(x),
        "pa": lambda: LIF()(x + residual.branch(x)),
        "ms": lambda: x + residual.branch(LIF()(x)),
    }
    assert torch.equal(residual(x), expected[wiring]())
    dropped = Residual(residual.branch, wiring, drop_path=1 - 1e-12).train()
    torch.testing.assert_close(dropped(x), LIF()(x) if wiring == "pa" else x)
    assert torch.equal(dropped.eval()(x), expected[wiring]())


@pytest.mark.parametrize("wiring", ["aba", "pa", "ms"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_blocks_keep_the_shape_and_what_travels_between_them(mixer, wiring):
    block = lively(SpikingBlock(C, HEADS, mixer=mixer, wiring=wiring, mlp_ratio=2.0))
    x = spikes(T, B, C, H, W)
    if wiring == "ms":
        x = 1 + 2 * torch.randn(T, B, C, H, W, dtype=torch.float64)  # a membrane current
    y, _ = with_spikes(block, x)
    assert y.shape == x.shape
    integers, binary = torch.equal(y, y.round()), bool(((y == 0) | (y == 1)).all())
    assert (integers, binary) == {"aba": (True, False), "pa": (True, True), "ms": (False, False)}[
        wiring
    ]


def test_membrane_shortcut_around_each_half_of_an_mlp_of_ratio_1():
    block = lively(SpikingBlock(C, HEADS, mixer="none", wiring="ms", mlp_ratio=1.0))
    x = torch.randn(T, B, C, H, W, dtype=torch.float64)
    fc1, fc2 = block.fc1.branch, block.fc2.branch
    y = x + fc1(LIF()(x))
    assert torch.equal(block(x), y + fc2(LIF()(y)))


@pytest.mark.parametrize("wiring", ["aba", "pa", "ms"])
@pytest.mark.parametrize("stem", [True, False])
def test_speds_is_main_path_plus_shortcut(wiring, stem):
    spec = EmbedSpec((Conv3x3(8, pool="before"), Conv3x3(6, stride=2)), shortcut_after=1)
    layer = lively(PatchEmbed(3, spec, wiring=wiring, stem=stem))
    x = torch.randn(T, B, 3, 8, 12, dtype=torch.float64)
    main, shortcut = (lambda y: layer.convs[1](y)), layer.shortcut
    y = layer.convs[0](LIF()(x) if wiring == "ms" and not stem else x)
    assert set(y.unique().tolist()) == {0.0, 1.0}  # a neuron stands behind the first convolution
    total = main(y) + shortcut(y)
    expected = LIF()(total) if wiring == "pa" else total
    got = layer(x)
    assert got.shape == (T, B, 6, 2, 3)
    assert torch.equal(got, expected)
    assert bool((got == got.round()).all()) == (wiring != "ms")


def test_sps_pools_behind_its_neurons():
    layer = lively(PatchEmbed(3, sps(16, (False, True, False, True))))
    x = torch.randn(T, B, 3, 8, 8, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (T, B, 16, 2, 2)
    assert set(y.unique().tolist()) <= {0.0, 1.0, 2.0}
    (first,) = outputs_of(layer, x, "convs.1.neuron")
    assert first.shape == (T, B, 4, 8, 8)


@pytest.mark.parametrize("pool", ["before", "after"])
def test_five_convolutions_end_in_a_current_and_pool_where_said(pool):
    spec = five_convs(16, (True, False, False, True), pool)
    layer = lively(PatchEmbed(3, spec, wiring="ms", stem=True))
    x = torch.randn(T, B, 3, 8, 8, dtype=torch.float64)
    y = x
    for conv, pooled in zip(layer.convs, (True, False, False, True, False), strict=True):
        y = conv.bn(conv.conv(y.flatten(0, 1)))
        if pooled and pool == "before":
            y = torch.nn.functional.max_pool2d(y, 3, 2, 1)
        y = y.unflatten(0, (T, B))
        if conv is not layer.convs[-1]:
            y = LIF()(y)
            assert 0 < y.mean() < 1
        if pooled and pool == "after":
            y = torch.nn.functional.max_pool2d(y.flatten(0, 1), 3, 2, 1).unflatten(0, (T, B))
    torch.testing.assert_close(layer(x), y)
    assert y.shape == (T, B, 16, 2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QKTokenAttention(10, 3), "num_heads must divide the 10 channels, got 3"),
        (lambda: SpikingSelfAttention(10, 0), "num_heads"),
        (lambda: SpikingSelfAttention(8, 2, ssa="broken"), "ssa must be"),
        (lambda: SpikingSelfAttention(8, 2, ssa="original", out_neuron=False), "last neuron"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
