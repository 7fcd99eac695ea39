"""The models through timm's own functions."""

import pytest
import timm
import timm.utils
import torch
from timm.layers import set_layer_config
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from torch import nn

import qkformer

SMALL = {"embed_dim": 32, "num_heads": 4, "T": 2}


@pytest.mark.parametrize("name", qkformer.list_models())
def test_timm_builds_the_same_model(name):
    torch.manual_seed(0)
    ours = qkformer.create_model(name, num_classes=7, drop_path_rate=0.1)
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7, drop_path_rate=0.1)
    assert str(ours) == str(theirs)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert timm.is_model(name)
    cfg = theirs.pretrained_cfg
    assert cfg["architecture"] == name and cfg["input_size"][0] == ours.in_chans
    assert theirs.get_submodule(cfg["classifier"]) is theirs.get_classifier()
    assert isinstance(theirs.get_submodule(cfg["first_conv"]), nn.Conv2d)


def test_timm_drops_none_so_unscaled_attention_is_a_scale_of_one():
    scale = lambda model: model.stages[-1].blocks[0].mixer.branch.product.scale  # noqa: E731
    assert scale(qkformer.create_model("qkformer_4_384", attn_scale=None)) is None
    assert scale(timm.create_model("qkformer_4_384", attn_scale=1.0)) == 1.0


def test_no_pretrained_weights_are_pretended():
    with pytest.raises(RuntimeError, match="pretrained"):
        timm.create_model("qkformer_4_384", pretrained=True)


def test_head():
    model = timm.create_model("qkformer_4_384", num_classes=0, **SMALL)
    x = torch.randn(2, 3, 32, 32)
    assert model(x).shape == (2, model.num_features) == (2, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 2, 32, 8, 8)
    assert torch.equal(model.forward_head(features, pre_logits=True), model(x))
    model.double().reset_classifier(5)
    assert model.num_classes == 5
    assert model(x.double()).shape == (2, 5)
    assert not model.head.bias.any() and model.head.weight.abs().max() < 0.1
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(5, "max")
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize("name", ["qkformer_4_384", "ms_qkformer_4_384", "maxformer_4_384"])
def test_features_of_the_stages(name):
    model = timm.create_model(name, features_only=True, **SMALL).eval()
    assert model.feature_info.channels() == [8, 16, 32]
    assert model.feature_info.reduction() == [1, 2, 4]
    x = torch.randn(2, 3, 32, 32)
    shapes = [tuple(f.shape) for f in model(x)]
    assert shapes == [(2, 8, 32, 32), (2, 16, 16, 16), (2, 32, 8, 8)]
    model = timm.create_model(name, features_only=True, out_indices=(1,), **SMALL)
    assert [f.shape[1] for f in model(x)] == [16]


@pytest.mark.parametrize(("name", "stages"), [("qkformer_2_256", 2), ("spikformer_4_384", 1)])
def test_features_of_models_with_fewer_stages(name, stages):
    model = timm.create_model(name, features_only=True)
    assert len(model.feature_info.channels()) == stages


def test_intermediates():
    model = timm.create_model("qkformer_4_384", **SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    final, every = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(every[-1], final.mean(0))
    last = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert len(last) == 1 and torch.equal(last[0], every[-1])
    stopped, _ = model.forward_intermediates(x, indices=[0], stop_early=True)
    assert stopped.shape[2] == 8
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", qkformer.list_models("*_4_384"))
def test_layer_decay_follows_the_order_of_the_layers(name):
    model = qkformer.create_model(name, neuron="plif")
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    scale, decay = {}, {}
    for group in groups:
        for p in group["params"]:
            scale[p], decay[p] = group["lr_scale"], group["weight_decay"]
    named = dict(model.named_parameters())
    assert scale.keys() == set(named.values())
    assert scale[model.head.weight] == 1.0
    order = [
        next(model.stages[0].embed.parameters()),
        next(model.stages[0].blocks[0].parameters()),
        *(next(block.parameters()) for block in model.stages[-1].blocks[-1:]),
        model.head.weight,
    ]
    assert [scale[p] for p in order] == sorted({scale[p] for p in order})
    assert all(decay[named[key]] == 0 for key in model.no_weight_decay())
    assert len(model.no_weight_decay()) > 10
    assert set(timm.models.group_parameters(model, model.group_matcher(coarse=True))) >= {0, 1}


def test_optimizer_and_scheduler_of_timm():
    model = timm.create_model("qkformer_4_384", **SMALL)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.06)
    create_scheduler_v2(optimizer, sched="cosine", num_epochs=10)
    before = [p.clone() for p in model.parameters()]
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > len(changed) // 2


def test_unpooled_features_and_head_dropout():
    x = torch.randn(2, 3, 32, 32)
    model = timm.create_model("qkformer_4_384", num_classes=0, global_pool="", **SMALL).eval()
    assert torch.equal(model(x), model.forward_features(x))
    model.reset_classifier(5, "avg")
    assert model(x).shape == (2, 5)
    model = timm.create_model("qkformer_4_384", drop_rate=0.5, **SMALL)
    assert model.head_drop.p == 0.5


@pytest.mark.parametrize("frozen", [["stages.0"], ["stages.0", "stages.1", "stages.2"]])
def test_frozen_stages_train(frozen):
    model = timm.create_model("qkformer_4_384", **SMALL)
    timm.utils.freeze(model, frozen)
    before = model.stages[0].embed.convs[0].bn.running_mean.clone()
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert torch.equal(model.stages[0].embed.convs[0].bn.running_mean, before)
    assert model.stages[0].embed.convs[0].conv.weight.grad is None
    assert model.head.weight.grad is not None


def test_exportable_flag_is_harmless():
    with set_layer_config(exportable=True):
        assert timm.create_model("qkformer_2_256").num_classes == 10
