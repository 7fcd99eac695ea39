"""BatchNorm folded into the convolutions: the same network, smaller and faster."""

import copy

import pytest
import torch
from conftest import make_model, with_spikes
from families import ANNS, FAMILIES
from torch import nn

import qkformer
from qkformer.layers import ConvBNNeuron

IMAGENET = dict(embed_dim=32, num_heads=2, T=2)
SMALL = dict(embed_dim=32, num_heads=2, T=3)
# name, options, input; None for a small one
MODELS = {
    "qkformer imagenet": ("qkformer_10_384", IMAGENET, (2, 3, 64, 64)),
    "qkformer original": ("qkformer_10_384", IMAGENET | {"ssa": "original"}, (3, 3, 32, 64)),
    "qkformer cifar": ("qkformer_4_384", SMALL, (2, 3, 32, 32)),
    "qkformer events": ("qkformer_2_256", SMALL, (2, 5, 2, 32, 32)),
    "qkformer plif": ("qkformer_4_384", SMALL | {"neuron": "plif"}, (2, 3, 20, 28)),
    "qkformer pa": ("qkformer_4_384", SMALL | {"residual": "pa"}, (2, 3, 16, 16)),
    "ms_qkformer": ("ms_qkformer_10_384", IMAGENET, (1, 3, 96, 64)),
    "maxformer": ("maxformer_10_384", IMAGENET, (2, 3, 64, 64)),
    "maxformer cifar": ("maxformer_4_384", SMALL, (2, 3, 24, 24)),
    "spikformer": ("spikformer_4_384", SMALL, (2, 3, 32, 32)),
    "spikformer events": ("spikformer_2_256", SMALL, (1, 4, 2, 48, 32)),
}
MODELS |= {name: (name, options, None) for name, options in FAMILIES.items()}


def made(case: str):
    name, options, shape = MODELS[case]
    model = make_model(name, **options)
    if shape is None:
        sides = max(2, 16 // model.downsampling)
        shape = (2, model.in_chans, *(model.downsampling * n for n in (sides, sides + 1)))
    generator = torch.Generator().manual_seed(1)
    return model, torch.randn(shape, generator=generator).double()


def norms(model) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@torch.no_grad()
def outputs(model, x) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The logits, and no spikes."""
    return model(x), []


@pytest.mark.parametrize("case", MODELS)
def test_folding_changes_no_output_and_no_spike(case):
    model, x = made(case)
    fused = qkformer.fuse_for_inference(model)
    assert norms(model) > 0
    assert bool(norms(fused)) == (case == "mst_swin_t")  # whose norms stand in front of layers
    run = outputs if case in ANNS else with_spikes
    logits, spikes = run(fused, x)
    expected, expected_spikes = run(model, x)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert all(map(torch.equal, spikes, expected_spikes))


def test_the_model_stays_as_it_is_and_the_copy_shares_nothing():
    model, _ = made("qkformer cifar")
    model.train()
    before = copy.deepcopy(model.state_dict())
    fused = qkformer.fuse_for_inference(model)
    assert model.training
    assert not fused.training
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_folded_model_is_smaller_and_keeps_its_interface():
    model, x = made("qkformer cifar")
    fused = qkformer.fuse_for_inference(model)
    sizes = [sum(t.numel() for t in m.state_dict().values()) for m in (model, fused)]
    assert sizes[1] < sizes[0]
    assert type(fused) is type(model)
    assert fused.num_classes == model.num_classes
    with torch.no_grad():
        features = fused.forward_features(x)
        assert torch.equal(fused.forward_head(features), fused(x))


def test_folding_twice_is_folding_once():
    model, x = made("maxformer cifar")
    once = qkformer.fuse_for_inference(model)
    twice = qkformer.fuse_for_inference(once)
    with torch.no_grad():
        assert torch.equal(once(x), twice(x))


def test_channels_last_gives_the_same():
    model, x = made("qkformer imagenet")
    fused = qkformer.fuse_for_inference(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = fused(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(logits, model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_can_be_reduced_behind_it(dtype):
    model, x = made("qkformer cifar")
    fused = qkformer.fuse_for_inference(model).to(dtype)
    with torch.no_grad():
        logits = fused(x.to(dtype))
    assert logits.dtype == dtype
    assert logits.isfinite().all()


def test_layers_fold_and_other_batchnorms_stay():
    layer = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.Flatten(0, 1))
    net = nn.ModuleDict({"ours": ConvBNNeuron(4, 5, bias=True), "other": layer})
    fused = qkformer.fuse_for_inference(net)
    assert isinstance(fused["ours"].bn, nn.Identity)
    assert norms(fused) == 1
    assert norms(qkformer.fuse_for_inference(ConvBNNeuron(4, 5))) == 0


def test_sync_batchnorm_folds():
    model, x = made("qkformer cifar")
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    fused = qkformer.fuse_for_inference(synced)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_folded_is_named():
    with pytest.raises(TypeError, match=r"made of qkformer\.layers\.ConvBNNeuron, got Linear"):
        qkformer.fuse_for_inference(nn.Linear(2, 2))
    layer = nn.Sequential(ConvBNNeuron(4, 5))
    layer[0].bn = nn.BatchNorm2d(5, track_running_stats=False)
    with pytest.raises(ValueError, match=r"0\.bn keeps no running statistics"):
        qkformer.fuse_for_inference(layer)


def test_int8_weights_are_nearest_integers_and_leave_spikes_spikes():
    model, x = made("qkformer cifar")
    folded, quantized = qkformer.fuse_for_inference(model), qkformer.quantize_int8(model)
    rounded = 0
    for name, layer in folded.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        rounded += 1
        own = quantized.get_submodule(name)
        parts = own.parametrizations.weight
        integers, scale = parts.original0, parts.original1
        assert integers.dtype == torch.int8
        assert (integers.flatten(1).int().abs().amax(1) == 127).all()
        assert torch.equal(own.weight, integers.double() * scale)
        assert ((own.weight - layer.weight).abs() <= scale * 0.5000001).all()
        assert layer.bias is None or torch.equal(own.bias, layer.bias)
    assert rounded > 20
    logits, spikes = with_spikes(quantized, x)
    assert all(((s == 0) | (s == 1)).all() for s in spikes)
    expected, _ = with_spikes(folded, x)
    assert not torch.equal(logits, expected)
    sizes = [sum(t.nbytes for t in m.state_dict().values()) for m in (folded, quantized)]
    assert sizes[1] < 0.2 * sizes[0]  # of 8 bytes, one, with scales and biases


def test_an_int8_model_can_be_copied_folded_saved_and_cast():
    model, x = made("qkformer cifar")
    quantized = qkformer.quantize_int8(model)
    twice = qkformer.quantize_int8(quantized)
    with torch.no_grad():
        expected = quantized(x)
        assert torch.equal(twice(x), expected)
        other = qkformer.quantize_int8(make_model("qkformer_4_384", seed=1, **SMALL))
        other.load_state_dict(quantized.state_dict())
        assert torch.equal(other(x), expected)
        assert quantized.half()(x.half()).isfinite().all()
