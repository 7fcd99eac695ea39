"""The configurations of other systems' recipes: as published, and able to train and be tested."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import make_fire
from families import FAMILIES
from test_configs import (
    CLASSES,
    DEMOS,
    FILES,
    PUBLISHED,
    chain,
    cheap,
    comments,
    config_of,
    value_of,
)
from training.few import Eager

import qkformer
from qkformer.checkpoint import load_checkpoint
from qkformer.checkpoint.io import read_checkpoint
from qkformer.checkpoint.released import NoPublishedNames, released_state_dict
from qkformer.neurons import IF, NEURONS
from qkformer.training import command_line
from qkformer.training.evaluate import run_test
from qkformer.training.model import count_parameters, create_model
from qkformer.training.train import run_training

PEERS = [file for file in FILES if file not in (*PUBLISHED, *DEMOS)]
ROWS = yaml.safe_load((Path(__file__).parents[1] / "docs" / "models.yml").read_text())["tables"]
ROWS = [row for table in ROWS for row in table["rows"]]
CHANS = {"dvs128-gesture": 2, "cifar10-dvs": 2}

each = pytest.mark.parametrize("file", PEERS, ids=lambda file: file.stem)


# ------------------------------------------------------------------------------- what a file says


@each
def test_a_file_is_named_after_its_data_and_model(file):
    config = config_of(file)
    name = config.model.name
    if config.data.name != "imagenet":
        name = re.sub(r"(_\d+_\d+)$", "", name)
    stem = f"{config.data.name.replace('-', '_')}_{name}"
    assert re.fullmatch(rf"{stem}(_T{config.model.T})?", file.stem)


@each
def test_the_model_has_the_parameters_that_the_comment_gives(file):
    config = config_of(file)
    model = create(config, "meta")
    assert f". {count_parameters(model):,} parameters. " in comments(file)
    time = f"T = {model.T}" if config.model.T else "an ANN"
    assert f", {time}. " in comments(file)


@each
def test_the_accuracy_is_that_of_the_row_which_names_the_file(file):
    found = re.search(r"Published: ([\d.]+) %", comments(file))
    rows = [row for row in ROWS if file.stem in row.get("config", ())]
    if not found:
        assert not rows and "Accuracy: not known to us." in comments(file)
        return
    (row,) = rows
    both = [float(part) for part in str(row["top1"]).split(" / ")]
    assert both[row["config"].index(file.stem)] == float(found[1])


def create(config, device="cpu"):
    """The model, for the classes, channels and size of its data."""
    name = config.data.name
    data = SimpleNamespace(num_classes=CLASSES[name], in_chans=CHANS.get(name, 3))
    with torch.device(device):
        return create_model(config, data)


# ------------------------------------------------------------------------------------- the recipes

# Of shared/reference/related.md; what it does not give is not here. File names -> keys.
SPIKINGFORMER = {
    "data.batch_size": 36,
    "epochs": 300,
    "optimizer.name": "adamw",
    "optimizer.lr": 5e-4,
    "optimizer.lr_per_batch": None,
    "optimizer.weight_decay": 0.05,
    "schedule.name": "cosine_per_epoch",
    "schedule.warmup_epochs": 20,
    "schedule.warmup_lr": 1e-6,
    "schedule.min_lr": 1e-5,
    "schedule.cooldown_epochs": 10,
    "augmentation.crop_scale": (1.0, 1.0),
    "augmentation.auto_augment": "rand-m9-mstd0.5-inc1",
    "augmentation.erasing_prob": 0.25,
    "augmentation.erasing_mode": "const",
    "augmentation.mixup_alpha": 0.8,
    "augmentation.cutmix_alpha": 1.0,
    "augmentation.mixup_prob": 1.0,
    "data.crop_pct": 1.0,
    "loss.label_smoothing": 0.1,
}
ON_CIFAR = {
    "epochs": 400,
    "data.batch_size": 64,
    "optimizer.name": "adamw",
    "optimizer.lr": 5e-4,
    "optimizer.weight_decay": 0.06,
    "schedule.name": "cosine_per_epoch",
    "schedule.warmup_epochs": 20,
    "schedule.warmup_lr": 1e-5,
    "schedule.min_lr": 1e-5,
    "schedule.cooldown_epochs": 10,
    "augmentation.crop_scale": (1.0, 1.0),
    "augmentation.auto_augment": "rand-m9-n1-mstd0.4-inc1",
    "augmentation.erasing_prob": 0.25,
    "augmentation.erasing_mode": "const",
    "augmentation.mixup_alpha": 0.5,
    "augmentation.mixup_off_epoch": 200,
}
ON_EVENTS = {
    "model.T": 16,
    "model.mlp_ratio": 4.0,
    "data.batch_size": 16,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 0.06,
    "schedule.name": "cosine_per_epoch",
    "schedule.warmup_epochs": 10,
    "schedule.warmup_lr": 1e-5,
    "schedule.min_lr": 1e-5,
    "schedule.cooldown_epochs": 10,
    "augmentation.auto_augment": "event",
    "augmentation.mixup_alpha": 0.5,
    "augmentation.mixup_prob": 0.5,
    "augmentation.mixup_off_epoch": 75,
}
SDT = {
    "seed": 42,
    "epochs": 300,
    "optimizer.name": "lamb",
    "optimizer.weight_decay": 0.01,
    "optimizer.lr_per_batch": None,
    "schedule.name": "cosine_per_epoch",
    "schedule.warmup_epochs": 20,
    "schedule.warmup_lr": 1e-5,
    "schedule.cooldown_epochs": 10,
    "augmentation.mixup_alpha": 0.2,
    "augmentation.cutmix_alpha": 1.0,
    "augmentation.erasing_prob": 0.0,
    "data.crop_pct": 0.95,
    "loss.label_smoothing": 0.1,
}
SMALL_SDT = {
    "optimizer.lr": 1.5e-3,
    "schedule.min_lr": 1.5e-5,
    "data.batch_size": 48,
    "augmentation.repeats": 3,
    "augmentation.auto_augment": "rand-m5-mstd0.5-inc1",
    "augmentation.mixup_prob": 0.6,
}
LARGE_SDT = {
    "optimizer.lr": 1e-3,
    "schedule.min_lr": 2e-5,
    "augmentation.auto_augment": "rand-m7-mstd0.5-inc1",
}
SDT_ON_CIFAR = {
    "seed": 42,
    "epochs": 300,
    "data.batch_size": 64,
    "optimizer.name": "adamw",
    "optimizer.lr": 3e-4,
    "optimizer.weight_decay": 0.06,
    "schedule.warmup_epochs": 20,
    "schedule.warmup_lr": 1e-6,
    "schedule.min_lr": 1e-5,
    "schedule.cooldown_epochs": 10,
    "augmentation.auto_augment": "rand-m9-n1-mstd0.4-inc1",
    "augmentation.crop_scale": (1.0, 1.0),
    "augmentation.mixup_alpha": 0.5,
    "augmentation.mixup_off_epoch": 200,
    "compute.precision": "fp32",
}
SDT_ON_GESTURE = {
    "epochs": 200,
    "data.batch_size": 16,
    "data.image_size": 128,
    "optimizer.name": "lamb",
    "schedule.warmup_epochs": 10,
    "schedule.min_lr": 1e-5,
    "schedule.cooldown_epochs": 10,
    "augmentation.hflip": 0.0,
    "augmentation.auto_augment": None,
    "augmentation.mixup_alpha": 0.0,
    "loss.tet_lambda": None,
}
V2 = {
    "optimizer.name": "lamb",
    "optimizer.args": {"trust_clip": True},
    "optimizer.lr_per_batch": 256,
    "schedule.warmup_epochs": 10,
    "data.crop_pct": None,  # 256 for 224
}
V3 = {
    "optimizer.name": "lamb",
    "optimizer.weight_decay": 0.05,
    "optimizer.lr": 6e-4,
    "optimizer.lr_per_batch": 256,
    "schedule.name": "cosine_per_step",
    "schedule.warmup_epochs": 5,
    "schedule.min_lr": 1e-6,
    "augmentation.auto_augment": "rand-m9-mstd0.5-inc1",
    "augmentation.erasing_prob": 0.25,
    "augmentation.erasing_mode": "pixel",
    "loss.label_smoothing": 0.1,
}
SEW = {
    "epochs": 320,
    "data.batch_size": 32,
    "model.neuron": "if",
    "optimizer.name": "momentum",
    "optimizer.args": {"momentum": 0.9},
    "optimizer.weight_decay": 0.0,
    "optimizer.lr": 0.1,
    "optimizer.lr_per_batch": None,
    "schedule.name": "cosine_per_epoch",
    "schedule.warmup_epochs": 0,
    "schedule.min_lr": 0.0,
    "augmentation.hflip": 0.5,
    "augmentation.auto_augment": None,
    "augmentation.erasing_prob": 0.0,
    "augmentation.mixup_alpha": 0.0,
    "loss.label_smoothing": 0.0,
    "compute.precision": "fp16",
}
QCFS = {
    "epochs": 300,
    "data.batch_size": 300,
    "optimizer.name": "momentum",
    "optimizer.weight_decay": 5e-4,
    "schedule.name": "cosine_per_epoch",
    "augmentation.auto_augment": "cifar10",
    "augmentation.cutout": 16,
}
MST = {"epochs": 300, "optimizer.lr": 1e-4, "optimizer.weight_decay": 0.05}
MST |= {"schedule.warmup_epochs": 20, "data.image_size": 224}
BARE = {"model.ssa": None, "model.mlp_ratio": None}
RECIPES = {
    r"imagenet_(cml_)?spik(ing|)former_8_\d+": SPIKINGFORMER,
    r"imagenet_(cml_)?spik(ing|)former_8_768": {"data.batch_size": 24},
    r"cifar100?_(cml_)?spik(ing|)former": ON_CIFAR,
    r"cifar10_(cml_)?spikingformer": {"model.args": {}},
    r"cifar100_(cml_)?spikingformer": {"model.args": {"num_heads": 8}},
    r"cifar10_dvs_(cml_)?spik(ing|)former": ON_EVENTS | {"epochs": 96},
    r"dvs128_gesture_(cml_)?spik(ing|)former": ON_EVENTS | {"epochs": 192},
    r"imagenet_sdt_.*": SDT,
    r"imagenet_sdt_8_(384|512|512_T1)": SMALL_SDT,
    r"imagenet_sdt_(6_512|10_512|8_768)": LARGE_SDT,
    r"imagenet_sdt_6_512": {"data.batch_size": 48, "augmentation.repeats": 3},
    r"imagenet_sdt_10_512": {"data.batch_size": 36, "augmentation.repeats": 1},
    r"imagenet_sdt_8_768": {"data.batch_size": 36, "augmentation.repeats": 3},
    r"imagenet_sdt_10_512.?": {"augmentation.mixup_prob": 0.75},
    r"imagenet_sdt_8_768.?": {"augmentation.mixup_prob": 1.0},
    r"cifar100?_sdt": SDT_ON_CIFAR,
    r"cifar100_sdt": {
        "data.mean": (0.5071, 0.4867, 0.4408),
        "data.std": (0.2675, 0.2565, 0.2761),
    },
    r"cifar10_dvs_sdt": {
        "epochs": 200,
        "data.image_size": 64,
        "data.batch_size": 32,
        "model.args": {"mixer": "sdsa_pooled", "pools": [False, False, True, True]},
        "loss.tet_lambda": 0.001,
        "loss.tet_target": 1.0,
        "optimizer.name": "adamw",
        "optimizer.lr": 7.5e-3,
        "optimizer.weight_decay": 1e-4,
        "schedule.warmup_epochs": 10,
        "schedule.warmup_lr": 1e-3,
        "schedule.min_lr": 3e-4,
        "augmentation.hflip": 0.5,
        "augmentation.auto_augment": None,
        "augmentation.mixup_alpha": 0.0,
    },
    r"dvs128_gesture_sdt.*": SDT_ON_GESTURE,
    r"dvs128_gesture_sdt": {
        "model.T": 16,
        "optimizer.lr": 3e-4,
        "optimizer.weight_decay": 0.06,
        "schedule.warmup_lr": 1e-6,
    },
    r"dvs128_gesture_sdt_T10": {
        "model.T": 10,
        "optimizer.lr": 2e-3,
        "optimizer.weight_decay": 1e-4,
        "schedule.warmup_lr": 1e-5,
    },
    r"imagenet_metaspikformer_.*": V2,
    r"imagenet_metaspikformer_.*_T1": {
        "epochs": 200,
        "data.batch_size": 128,
        "optimizer.lr": 6e-4,
    },
    r"imagenet_metaspikformer_8_512": {
        "epochs": 50,
        "data.batch_size": 24,
        "optimizer.lr": 2e-5,
        "loss.teacher": "caformer_b36.sail_in22k_ft_in1k",
    },
    r"imagenet_espikeformer_.*": V3,
    r"imagenet_espikeformer_[tsml]": {
        "epochs": 200,
        "data.batch_size": 256,
        "augmentation.mixup_alpha": 0.0,
    },
    r"imagenet_espikeformer_12_\d+": {
        "epochs": 150,
        "optimizer.layer_decay": 0.75,
        "augmentation.mixup_alpha": 0.8,
        "augmentation.cutmix_alpha": 1.0,
        "model.drop_path_rate": 0.1,
    },
    r"imagenet_sew_resnet\d+": SEW | BARE,
    r"cifar100?_qcfs_resnet18": QCFS | BARE,
    r"cifar10_qcfs_resnet18": {"optimizer.lr": 0.1},
    r"cifar100_qcfs_resnet18": {"optimizer.lr": 0.05},
    r".*_mst_swin_t": MST | BARE,
    r"dvs128_gesture_stsa": BARE
    | {
        "epochs": 1000,
        "data.batch_size": 8,
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-2,
        "optimizer.weight_decay": 1e-4,
        "schedule.min_lr": 1e-6,
        "augmentation.shift": 5,
    },
    # without a published recipe among our references
    r"cifar100?_(resnet19|resnet19_snn|transformer)": BARE | {"optimizer.lr": 1e-3},
    r"imagenet_(deit|swin)_.*": BARE | {"epochs": 300, "model.neuron": None},
}


@each
def test_a_run_follows_the_recipe_of_its_publication(file):
    config = config_of(file)
    matching = [recipe for name, recipe in RECIPES.items() if re.fullmatch(name, file.stem)]
    recipe = {key: value for part in matching for key, value in part.items()}
    assert recipe and {key: value_of(config, key) for key in recipe} == recipe


def test_a_step_on_imagenet_has_as_many_samples_as_the_file_or_its_base_says():
    for file in (file for file in PEERS if file.stem.startswith("imagenet")):
        texts = (part.read_text() for part in chain(file))
        said = next(found for text in texts if (found := re.findall(r"= (\d+) per step", text)))
        assert said == [str(config_of(file).samples_per_step(8))], file.name


def test_every_recipe_has_a_file():
    for name in RECIPES:
        assert any(re.fullmatch(name, file.stem) for file in PEERS), name


# ------------------------------------------------------------------------------------ two steps

_TINY_SWIN = dict(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=2)
STEPS = {
    "cifar10_spikingformer": FAMILIES["spikingformer_4_384"],
    "dvs128_gesture_cml_spikingformer": FAMILIES["cml_spikingformer_2_256"],
    "imagenet_cml_spikformer_8_384": FAMILIES["cml_spikformer_4_384"],
    "imagenet_sdt_8_384": FAMILIES["sdt_2_512"],
    "cifar10_dvs_sdt": FAMILIES["sdt_2_256"],
    "imagenet_metaspikformer_8_384_T1": FAMILIES["metaspikformer_8_384"],
    "imagenet_metaspikformer_8_512": FAMILIES["metaspikformer_8_384"] | {"distilled": True},
    "imagenet_espikeformer_m": FAMILIES["espikeformer_t"],
    "imagenet_espikeformer_12_512": FAMILIES["espikeformer_12_512"]
    | {"distilled": False, "num_heads": 1},  # of so few tokens a wide head's products are enough
    "imagenet_sew_resnet34": FAMILIES["sew_resnet34"],
    "cifar10_resnet19": FAMILIES["resnet19"],
    "cifar100_resnet19_snn": FAMILIES["resnet19_snn"],
    "cifar10_transformer": FAMILIES["transformer_4_384"],
    "cifar10_qcfs_resnet18": FAMILIES["qcfs_resnet18"],
    "cifar100_mst_swin_t": FAMILIES["mst_swin_t"],
    "dvs128_gesture_stsa": dict(embed_dim=32, depth=1, mlp_drop=0.0),
    "imagenet_swin_tiny_patch4_window7_224": _TINY_SWIN,
    "imagenet_deit_base_patch16_224": dict(embed_dim=32, depth=1, num_heads=2),
}


def small(stem, monkeypatch, folder):
    """The configuration of this file, narrow, on synthetic data; with a teacher at hand."""
    file = next(file for file in PEERS if file.stem == stem)
    changes = {"skip_head": False, "args": STEPS[stem]}
    if config_of(file).data.name in CHANS:
        changes["T"] = 2
    config = cheap(file, monkeypatch, **changes)
    if config.loss.teacher:
        teacher = qkformer.create_model("test_resnet", num_classes=1000)
        torch.save(teacher.state_dict(), folder / "teacher.pth")
        known = {"teacher": "test_resnet", "teacher_weights": str(folder / "teacher.pth")}
        config = replace(config, loss=replace(config.loss, **known))
    if "espikeformer" in stem:  # a fresh one, whose integers begin at a current of 0.5, is silent
        torch.save(make_fire(create(config)).state_dict(), folder / "fires.pth")
        config = replace(config, model=replace(config.model, weights=str(folder / "fires.pth")))
    # the rate of so small a batch would be less than the schedule's least
    optimizer = replace(config.optimizer, lr_per_batch=None)
    schedule = replace(config.schedule, cooldown_epochs=0, warmup_lr=optimizer.lr)
    return replace(config, epochs=1, optimizer=optimizer, schedule=schedule)


class EagerIF(IF):
    """Fires in every layer of a network that has hardly been trained."""

    def __init__(self, v_threshold=0.1, **options):
        super().__init__(v_threshold=v_threshold, **options)


@pytest.mark.slow
@pytest.mark.parametrize("stem", STEPS)
def test_two_steps_reach_every_weight_and_testing_confirms(stem, monkeypatch, tmp_path):
    monkeypatch.setitem(NEURONS, "lif", Eager)
    monkeypatch.setitem(NEURONS, "if", EagerIF)
    config = small(stem, monkeypatch, tmp_path)
    run_training(config, command_line.TrainOptions(tmp_path / "run", "none", "cpu"))
    (line,) = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    spiking = config.model.T is not None
    assert bool(line["firing_rate"]) == spiking
    assert not spiking or min(line["firing_rate"].values()) > 0
    assert 0 < line["train_loss"] < 20
    last = tmp_path / "run/last.pth"
    moments = read_checkpoint(last)["optimizer"]["state"].values()
    model = create(config)
    assert len(moments) == len(list(model.parameters()))
    assert all(any(m.any() for name, m in one.items() if name != "step") for one in moments)
    load_checkpoint(model, last)
    path = last
    try:  # a file as the publication's, where there is one
        path = tmp_path / "published.pth"
        torch.save(released_state_dict(model), path)
    except NoPublishedNames:
        path = last
    tested = run_test(config, command_line.TestOptions(path, tmp_path, "cpu"))
    assert (tested["acc1"], tested["loss"]) == (line["test_acc1"], line["test_loss"])
