"""Loading published and own files, and the refusals a user meets."""

import argparse

import pytest
import torch
from conftest import make_model
from published import PUBLISHED, published_shapes, published_state
from safetensors.torch import save_file
from timm.models import save_for_hf

import qkformer
from qkformer import CheckpointError, load_checkpoint, released_state_dict
from qkformer.checkpoint import NoPublishedNames, file_md5, fitting_models, load
from qkformer.checkpoint.released import unused_keys

DVS = "dvs128gesture_hst_2_256"
SMALL = dict(embed_dim=32, num_heads=4)


def dvs_model(**options):
    return qkformer.create_model("qkformer_2_256", **{**PUBLISHED[DVS][1], **options}).double()


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_names_and_shapes_there_and_back(case):
    name, options = PUBLISHED[case]
    with torch.device("meta"):
        model = qkformer.create_model(name, **options)
    shapes = {key: list(value.shape) for key, value in released_state_dict(model).items()}
    published = published_shapes(case)
    unused = unused_keys(model)
    dropped = [key for key in published if unused.fullmatch(key)]
    assert shapes == {k: v for k, v in published.items() if k not in dropped}
    # norms, talking heads, projections without effect; what is computed, not learned
    assert bool(dropped) == case.startswith(("spik", "cml", "sdt", "stsa", "mst"))


def test_every_weight_arrives_and_is_given_back(tmp_path):
    state = published_state(DVS, seed=3)
    torch.save({"model": state, "epoch": 7, "max_test_acc1": 98.26}, tmp_path / "a.pth")
    model = dvs_model()
    report = load_checkpoint(model, tmp_path / "a.pth")
    assert equal(released_state_dict(model), state)
    assert (report.epoch, report.accuracy, report.published) == (7, 98.26, True)
    assert report.mapped["stage1.0.tssa.q_conv.weight"] == (
        "stages.0.blocks.0.mixer.branch.q.conv.weight"
    )
    assert len(report.mapped) == len(state)
    assert report.dropped == report.skipped == report.missing == []
    assert "122 tensors" in str(report) and "98.26" in str(report)


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: state,
        lambda state: {"model": state, "args": argparse.Namespace(lr=1e-3), "optimizer": {}},
        lambda state: {"state_dict": state, "metric": 96.2},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {"state_dict": {}, "state_dict_ema": state},
    ],
)
@pytest.mark.parametrize("published", [True, False])
def test_layouts(layout, published, tmp_path):
    source = make_model("qkformer_2_256", **PUBLISHED[DVS][1])
    state = released_state_dict(source) if published else source.state_dict()
    torch.save(layout(dict(state)), tmp_path / "file.pth")
    model = dvs_model()
    use_ema = "state_dict_ema" in layout(dict(state))
    report = load_checkpoint(model, tmp_path / "file.pth", use_ema=use_ema)
    assert equal(model.state_dict(), source.state_dict())
    assert report.published == published


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_folder_of_timms_save_for_hf(safe, tmp_path):
    options = dict(SMALL, T=2, neuron="if", mlp_ratio=2.0)
    source = make_model("qkformer_2_256", **options).float()
    save_for_hf(source, tmp_path, safe_serialization=safe)
    model = qkformer.create_model("qkformer_2_256", **options)
    report = load_checkpoint(model, tmp_path)
    assert equal(model.state_dict(), source.state_dict())
    file = tmp_path / ("model.safetensors" if safe else "pytorch_model.bin")
    assert report.md5 == file_md5(file)
    recorded = {"name": "qkformer_2_256", "T": 2, "neuron": "if", "mlp_ratio": 2.0, "args": SMALL}
    assert report.recorded == {"model": recorded}
    with pytest.raises(CheckpointError, match="is of qkformer_2_256, the model is ms_qkformer"):
        load_checkpoint(qkformer.create_model("ms_qkformer_2_256", **options), tmp_path)


@pytest.mark.parametrize(
    "config", ["{", "[]", "{}", '{"architecture": "x", "model_args": 3}', None]
)
def test_a_folder_that_is_no_export_gets_one_line(config, tmp_path):
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(qkformer.create_model("qkformer_2_256", **SMALL), tmp_path)
    message = str(refused.value)
    assert message.startswith(str(tmp_path)) and "\n" not in message
    assert ("config.json: not of a model" if config else "qkformer.export hf") in message


@pytest.mark.slow
def test_models_of_timm_load_files_of_their_own_names(tmp_path):
    source, model = (qkformer.create_model("deit_tiny_patch16_224", depth=1) for _ in range(2))
    torch.save({"model": source.state_dict(), "epoch": 3}, tmp_path / "a.pth")
    report = load_checkpoint(model, tmp_path / "a.pth")
    assert equal(model.state_dict(), source.state_dict())
    assert report.epoch == 3 and not report.published
    torch.save({"model": published_state(DVS)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="has no published names"):
        load_checkpoint(model, tmp_path / "b.pth")


def test_safetensors(tmp_path):
    source = make_model("qkformer_4_384", **SMALL)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = qkformer.create_model("qkformer_4_384", **SMALL).double()
    report = load_checkpoint(model, tmp_path / "weights.safetensors")
    assert equal(model.state_dict(), source.state_dict())
    assert report.state_dict_key is None and report.epoch is None and report.accuracy is None


@pytest.mark.slow
def test_layers_outside_the_published_forward_are_dropped_by_name(tmp_path):
    state = published_state("spikformer__cifar10dvs")
    torch.save({"model": state}, tmp_path / "a.pth")
    report = load_checkpoint(qkformer.create_model("spikformer_2_256"), tmp_path / "a.pth")
    norms = {f"block.{b}.norm{n}.{w}" for b in "01" for n in "12" for w in ("weight", "bias")}
    assert set(report.dropped) == norms | {"norm.weight", "norm.bias", "pos_embed"}
    state["block.0.norm3.weight"] = torch.ones(3)
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"only in the file: block\.0\.norm3\.weight \[3\]"):
        load_checkpoint(qkformer.create_model("spikformer_2_256"), tmp_path / "a.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "fits"),
    [
        (lambda: dvs_model(mlp_ratio=1.0), "'qkformer_2_256', num_classes=11, mlp_ratio=4.0"),
        (lambda: qkformer.create_model("spikformer_2_256"), "'qkformer_2_256', num_classes=11"),
        (lambda: qkformer.create_model("qkformer_4_384"), "'qkformer_2_256', num_classes=11"),
        # no published names of its own
        (lambda: qkformer.create_model("qkformer_2_256", mixers=("channel_qk",) * 2), "mlp_ratio"),
    ],
)
def test_another_architecture_is_refused_and_the_right_one_named(model, fits, tmp_path):
    torch.save({"model": published_state(DVS)}, tmp_path / "a.pth")
    model = model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"the file fits create_model\(") as error:
        load_checkpoint(model, tmp_path / "a.pth")
    assert fits in str(error.value)
    assert len(str(error.value).splitlines()) < 15
    assert equal(model.state_dict(), before)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in PUBLISHED if "stsa" not in case])  # T = 4
def test_every_published_file_is_recognised(case):
    name, options = PUBLISHED[case]
    traced = {k: v for k, v in options.items() if k in ("num_classes", "mlp_ratio")}
    arguments = [repr(name), *(f"{k}={v}" for k, v in traced.items())]
    state = {k: torch.empty(shape, device="meta") for k, shape in published_shapes(case).items()}
    fitting = fitting_models(state)
    assert f"create_model({', '.join(arguments)})" in fitting
    twins = {name, name.removeprefix("cml_"), f"cml_{name}"}  # pools leave no trace
    assert {call.split("'")[1] for call in fitting} <= twins


@pytest.mark.slow
def test_a_file_that_fits_nothing(tmp_path):
    torch.save({"fc.weight": torch.ones(3, 2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no registered model .* fits"):
        load_checkpoint(dvs_model(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no registered model .* fits"):
        load_checkpoint(dvs_model(), tmp_path / "a.pth", strict=False)


@pytest.mark.slow
def test_the_head_of_another_class_count(tmp_path):
    torch.save({"model": published_state(DVS)}, tmp_path / "a.pth")
    for num_classes in (10, 0):
        model = dvs_model(num_classes=num_classes)
        head = [p.clone() for p in model.head.parameters()]
        with pytest.raises(CheckpointError, match=r"skip_head=True, --model\.skip_head true"):
            load_checkpoint(model, tmp_path / "a.pth")
        report = load_checkpoint(model, tmp_path / "a.pth", skip_head=True)
        assert report.skipped == ["head.weight", "head.bias"]
        assert all(torch.equal(a, b) for a, b in zip(head, model.head.parameters(), strict=True))
        assert torch.equal(
            model.stages[0].embed.convs[0].conv.weight,
            published_state(DVS)["patch_embed1.proj_conv.weight"],
        )


def test_not_strict_loads_what_fits_and_says_so(tmp_path):
    torch.save({"model": published_state(DVS)}, tmp_path / "a.pth")
    model = dvs_model(mlp_ratio=1.0)
    report = load_checkpoint(model, tmp_path / "a.pth", strict=False)
    assert len(report.mapped) + len(report.missing) == len(model.state_dict())
    assert "stages.0.blocks.0.mlp.branch.fc1.conv.weight" in report.missing
    assert "stage1.0.mlp.mlp1_conv.weight" in report.skipped
    assert "missing: stages" in str(report)


def test_averaged_weights(tmp_path):
    plain, averaged = published_state(DVS, 0), published_state(DVS, 1)
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "a.pth")
    model = dvs_model()
    load_checkpoint(model, tmp_path / "a.pth")
    assert equal(released_state_dict(model), plain)
    report = load_checkpoint(model, tmp_path / "a.pth", use_ema=True)
    assert equal(released_state_dict(model), averaged)
    assert report.state_dict_key == "state_dict_ema"
    torch.save({"state_dict": plain}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="state_dict_ema"):
        load_checkpoint(model, tmp_path / "b.pth", use_ema=True)


@pytest.mark.parametrize(
    ("recorded", "of"),
    [
        ({}, ""),
        ({"optimizer": {"ema_decay": None}, "data": {"val_fraction": 0.0}}, ""),
        ({"optimizer": {"ema_decay": 0.9}}, " (of the averaged weights)"),
        ({"data": {"val_fraction": 0.1}}, " (on held-out training samples)"),
        (
            {"optimizer": {"ema_decay": 0.9}, "data": {"val_fraction": 0.1}},
            " (of the averaged weights, on held-out training samples)",
        ),
        ({"optimizer": 3, "data": "digits"}, ""),
    ],
)
def test_a_recorded_accuracy_is_said_to_be_what_it_is_of(recorded, of, tmp_path):
    state = published_state(DVS)
    torch.save({"model": state, "acc1": 50.0, "config": recorded}, tmp_path / "a.pth")
    report = load_checkpoint(dvs_model(), tmp_path / "a.pth")
    assert report.recorded == recorded
    assert str(report).endswith(f"recorded top-1 50.00 %{of}")
    assert not report.has_ema
    torch.save({"model": state, "state_dict_ema": state}, tmp_path / "a.pth")
    assert load_checkpoint(dvs_model(), tmp_path / "a.pth").has_ema


def test_known_files_are_named(tmp_path, monkeypatch):
    torch.save({"model": published_state(DVS)}, tmp_path / "a.pth")
    assert load_checkpoint(dvs_model(), tmp_path / "a.pth").known_as is None
    md5 = qkformer.checkpoint.file_md5(tmp_path / "a.pth")
    monkeypatch.setitem(load.KNOWN_FILES, md5, load.KnownFile("an old friend", "friend.yml"))
    report = load_checkpoint(dvs_model(), tmp_path / "a.pth")
    assert report.known_as == "an old friend" and report.md5 == md5
    assert "known as an old friend" in str(report)


def test_a_file_without_a_state_dict(tmp_path):
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no state dict.*epoch, optimizer"):
        load_checkpoint(dvs_model(), tmp_path / "a.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        {0: torch.ones(1)},
        {"model": {("a", 1): torch.ones(1)}},
        {"model": {"head.weight": torch.ones(())}},
        {"model": {"head.weight": torch.ones(10, 256, device="meta")}},
        {"model": {"head.weight": torch.ones(10, 256).to_sparse()}},
    ],
    ids=str,
)
def test_odd_files_are_refused_and_the_model_is_unchanged(content, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    model = dvs_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for strict in (True, False):
        with pytest.raises(CheckpointError):
            load_checkpoint(model, tmp_path / "a.pth", strict=strict)
    assert equal(model.state_dict(), before)


@pytest.mark.slow
def test_weights_of_another_kind_of_number_do_not_fit(tmp_path):
    state = published_state(DVS)
    for value in (state["head.weight"].to(torch.int8), state["head.weight"].to(torch.complex64)):
        torch.save({"model": {**state, "head.weight": value}}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=r"head\.weight: (int8|complex64) \[11, 256\]"):
            load_checkpoint(dvs_model(), tmp_path / "a.pth")


def test_the_state_dict_is_found_behind_an_entry_that_is_none(tmp_path):
    content = {"model": {"name": "x"}, "state_dict": published_state(DVS), "epoch": float("nan")}
    torch.save(content, tmp_path / "a.pth")
    report = load_checkpoint(dvs_model(), tmp_path / "a.pth")
    assert report.state_dict_key == "state_dict" and report.epoch is None


def test_our_files_of_the_same_keys_but_another_wiring_are_told_apart(tmp_path):
    state = qkformer.create_model("ms_qkformer_4_384").state_dict()
    config = {"model": {"name": "ms_qkformer_4_384"}}
    torch.save({"model": state, "config": config}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="is of ms_qkformer_4_384, the model is qkformer_4"):
        load_checkpoint(qkformer.create_model("qkformer_4_384"), tmp_path / "a.pth")
    load_checkpoint(qkformer.create_model("ms_qkformer_4_384"), tmp_path / "a.pth")
    assert fitting_models(state) == [
        "create_model('ms_qkformer_4_384')", "create_model('qkformer_4_384')"
    ]  # fmt: skip
    headless = {key: value for key, value in state.items() if not key.startswith("head.")}
    assert "create_model('qkformer_4_384', num_classes=0)" in fitting_models(headless)


def test_unpublished_models_have_no_published_names():
    for options in ({"neuron": "plif"}, {"mixers": ("token_qk", "channel_qk")}):
        with pytest.raises(NoPublishedNames):
            released_state_dict(qkformer.create_model("qkformer_2_256", **options))
    for name, options in (
        ("ms_qkformer_2_256", {}),
        ("spikformer_4_384", {"patch_embed": "speds"}),
    ):
        with pytest.raises(NoPublishedNames):
            released_state_dict(qkformer.create_model(name, **options))


def test_only_models_are_loaded():
    with pytest.raises(TypeError, match="expected a model, got str"):
        load_checkpoint("qkformer_4_384", "a.pth")
