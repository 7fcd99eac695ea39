"""The models through timm's own functions."""

import pytest
import timm
import timm.utils
import torch
from conftest import firing, make_fire, make_model, with_spikes
from families import FAMILIES
from timm.layers import set_layer_config
from timm.models import _hub as hub
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from torch import nn

import qkformer
from qkformer.models.registry import arguments

SMALL = {"embed_dim": 32, "num_heads": 4, "T": 2}


@pytest.mark.parametrize("name", qkformer.list_models())
def test_every_model_is_timms_too(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name and cfg["input_size"][0] == model.in_chans
    named, find = cfg["classifier"], model.get_submodule
    heads = tuple(map(find, named)) if isinstance(named, tuple) else find(named)
    assert model.get_classifier() == heads
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_builds_the_same_model(name):
    torch.manual_seed(0)
    ours = qkformer.create_model(name, num_classes=7, **FAMILIES[name])
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7, **FAMILIES[name])
    assert str(ours) == str(theirs)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_has_timms_interface(name):
    model = make_model(name, num_classes=7, **FAMILIES[name]).float()
    sides = max(2, 16 // model.downsampling)
    shape = (2, model.in_chans, model.downsampling * sides, model.downsampling * (sides + 1))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with firing() as fired:
        final, stages = model.forward_intermediates(x)
        logits = model.forward_head(final)
    assert all(fired.values()) and torch.equal(logits, model(x))
    assert torch.equal(stages[-1], final.mean(0)) and torch.equal(final, model.forward_features(x))
    for stage, info in zip(stages, model.feature_info, strict=True):
        assert stage.shape[1] == info["num_chs"]
        assert x.shape[2] // stage.shape[2] == x.shape[3] // stage.shape[3] == info["reduction"]
    scales = {
        p: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5)
        for p in group["params"]
    }
    assert scales.keys() == set(model.parameters()) and scales[model.head.weight] == 1
    first = next(model.stages[0].embed.parameters())
    last = next(model.stages[-1].blocks[-1].parameters())
    assert scales[first] == min(scales.values()) < scales[last] < 1
    pooled = model.forward_head(final, pre_logits=True)
    model.reset_classifier(5)
    assert pooled.shape == (2, model.head_hidden_size) and model(x).shape == (2, 5)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    features = timm.create_model(name, features_only=True, **FAMILIES[name]).eval()(x)
    assert [each.shape for each in features] == [stage.shape for stage in stages]


def test_image_models_of_timm_are_built_by_name_too():
    model = qkformer.create_model("deit_tiny_patch16_224.fb_in1k", num_classes=5, depth=1)
    assert type(model) is timm.models.VisionTransformer
    assert model.num_classes == 5
    assert "deit_tiny_patch16_224" not in qkformer.list_models()


def test_timm_drops_none_so_unscaled_attention_is_a_scale_of_one():
    scale = lambda model: model.stages[-1].blocks[0].mixer.branch.product.scale  # noqa: E731
    assert scale(qkformer.create_model("qkformer_4_384", attn_scale=None)) is None
    assert scale(timm.create_model("qkformer_4_384", attn_scale=1.0)) == 1.0


def test_no_pretrained_weights_are_pretended():
    with pytest.raises(RuntimeError, match="pretrained"):
        timm.create_model("qkformer_4_384", pretrained=True)


# of every kind that JSON has: number, word, list, dict, and None, which timm's create_model drops
OPTIONS = {
    "T": 3,
    "in_chans": 4,
    "num_classes": 7,
    "mlp_ratio": 2.0,
    "attn_scale": None,
    "hidden": None,
    "qkv_bias": True,
    "neuron": "plif",
    "neuron_args": {"v_init": None, "v_reset": 0.1},
    "mixers": ("channel_qk", "dwconv5", "ssa"),
    "pools": (True, False, True, True),
}
NO_SNN = ("transformer_4_384", "resnet19", "qcfs_resnet18")  # with activations of their own
SOURCES = [*((name, "local-dir") for name in FAMILIES), ("qkformer_4_384", "hf-hub")]


def hub_options(name):
    """What of these the family takes, over its small size."""
    with torch.device("meta"):
        taken = arguments(type(qkformer.create_model(name, **FAMILIES[name])))
    taken -= {"neuron", "neuron_args"} if name in NO_SNN else set()
    return {key: OPTIONS[key] for key in OPTIONS if key in taken} | FAMILIES[name]


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_what_timm_saves_it_builds_again(name, source, tmp_path, monkeypatch):
    """From a folder, or from the hub, of which a folder takes the place: with every argument."""
    options = hub_options(name)
    model = make_model(name, **options).float()
    save_for_hf(model, tmp_path, safe_serialization=True)
    monkeypatch.setattr(
        hub, "hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / filename)
    )
    where = tmp_path if source == "local-dir" else "someone/something"
    loaded = timm.create_model(f"{source}:{where}", pretrained=True).eval()
    assert str(loaded) == str(model)
    x = 2 * torch.randn(4, 4, *options.get("img_size", (2 * model.downsampling,) * 2))
    with torch.no_grad(), firing() as fired:
        logits = model(x)
        assert torch.equal(loaded(x), logits)
    assert all(fired.values()) and (logits != logits[0]).any()
    assert fired or name in NO_SNN or name == "mst_swin_t"


def test_ablations_that_timm_saves_it_builds_again(tmp_path):
    options = {"ssa": "original", "mixers": ("ssa", "channel_qk", "ssa"), "depths": (1, 0, 1)}
    model = timm.create_model("qkformer_4_384", **SMALL, **options)
    save_for_hf(model, tmp_path)
    fine_tuned = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5, T=3)
    assert fine_tuned.ssa == "original" and fine_tuned.T == 3
    assert fine_tuned.head.out_features == 5
    assert str(fine_tuned.stages) == str(model.stages)
    weights = fine_tuned.stages.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in model.stages.state_dict().items())


def lively(name="qkformer_4_384", **options):
    return make_fire(timm.create_model(name, **SMALL, **options)).eval()


def test_head():
    model = lively(num_classes=0)
    x = torch.randn(2, 3, 32, 32)
    pooled, _ = with_spikes(model, x)
    assert pooled.shape == (2, model.num_features) == (2, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 2, 32, 8, 8)
    assert torch.equal(model.forward_head(features, pre_logits=True), pooled)
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
    model = lively(name, features_only=True)
    assert model.feature_info.channels() == [8, 16, 32]
    assert model.feature_info.reduction() == [1, 2, 4]
    x = torch.randn(2, 3, 32, 32)
    features = model(x)
    assert [tuple(f.shape) for f in features] == [(2, 8, 32, 32), (2, 16, 16, 16), (2, 32, 8, 8)]
    assert all((f[0] != f[1]).any() for f in features)
    model = lively(name, features_only=True, out_indices=(1,))
    assert [f.shape[1] for f in model(x)] == [16]


@pytest.mark.parametrize(("name", "stages"), [("qkformer_2_256", 2), ("spikformer_4_384", 1)])
def test_features_of_models_with_fewer_stages(name, stages):
    model = timm.create_model(name, features_only=True)
    assert len(model.feature_info.channels()) == stages


def test_intermediates():
    model = lively()
    x = torch.randn(2, 3, 32, 32)
    with_spikes(model, x)
    final, every = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(every[-1], final.mean(0))
    last = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert len(last) == 1 and torch.equal(last[0], every[-1])
    stopped, _ = model.forward_intermediates(x, indices=[0], stop_early=True)
    assert stopped.shape[2] == 8
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", [name for name in FAMILIES if "_4_384" in name])
def test_layer_decay_follows_the_order_of_the_layers(name):
    model = qkformer.create_model(name, neuron="plif", **FAMILIES[name])
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
    scales = [scale[p] for p in order]
    assert scales == sorted(scales) and scales[0] < scales[1] < scales[-1]
    assert all(decay[named[key]] == 0 for key in model.no_weight_decay())
    assert len(model.no_weight_decay()) > 5
    assert set(timm.models.group_parameters(model, model.group_matcher(coarse=True))) >= {0, 1}


def test_optimizer_and_scheduler_of_timm():
    model = lively()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.0)
    create_scheduler_v2(optimizer, sched="cosine", num_epochs=10)
    before = [p.clone() for p in model.parameters()]
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    for (name, p), old in zip(model.named_parameters(), before, strict=True):
        assert not torch.equal(p, old), name


def test_unpooled_features_and_head_dropout():
    x = torch.randn(2, 3, 32, 32)
    model = lively(num_classes=0, global_pool="")
    unpooled, _ = with_spikes(model, x)
    assert torch.equal(unpooled, model.forward_features(x))
    model.reset_classifier(5, "avg")
    assert model(x).shape == (2, 5)
    model = timm.create_model("qkformer_4_384", drop_rate=0.5, **SMALL)
    assert model.head_drop.p == 0.5


@pytest.mark.parametrize("frozen", [["stages.0"], ["stages.0", "stages.1", "stages.2"]])
def test_frozen_stages_train(frozen):
    model = lively().train()
    timm.utils.freeze(model, frozen)
    first = model.stages[0].embed.convs[0]
    before = first.bn.running_mean.clone()
    x = torch.randn(2, 3, 32, 32)
    model(x).sum().backward()
    assert torch.equal(first.bn.running_mean, before)
    assert first.conv.weight.grad is None
    assert all(model.head.weight.grad.any(0))
    trained = model.stages[len(frozen) :].parameters()
    assert all(p.grad.any() for p in trained)


def test_exportable_flag_is_harmless():
    with set_layer_config(exportable=True):
        assert timm.create_model("qkformer_2_256").num_classes == 10
