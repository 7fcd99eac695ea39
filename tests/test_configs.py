"""The shipped configurations: complete, true to the recipes, and able to train.

Those of other systems' recipes have more tests in test_peer_configs.py.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import TensorDataset
from training.few import Eager

import qkformer
from qkformer.checkpoint.io import read_checkpoint
from qkformer.data import registry
from qkformer.data.source import EVENTS, EventData, ImageData
from qkformer.neurons import NEURONS
from qkformer.training.command_line import TrainOptions, parse_train
from qkformer.training.config import KEYS, ConfigError, flat
from qkformer.training.config_file import read_config
from qkformer.training.model import count_parameters
from qkformer.training.train import run_training

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").glob("*.yml"))
OWN = re.compile(r"_(ms_qkformer|qkformer|maxformer|(?<!cml_)spikformer)")  # by QKFormer's recipe
PUBLISHED = [file for file in FILES if OWN.search(file.stem)]
DEMOS = [file for file in FILES if file.stem.startswith("demo_")]
CLASSES = {"imagenet": 1000, "cifar10": 10, "cifar100": 100, "dvs128-gesture": 11}
CLASSES |= {"cifar10-dvs": 10, "digits": 10, "digits-dvs": 10}
FOLDERS = {"digits": "cifar10", "digits-dvs": "cifar10-dvs"}  # of data without one of their own

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
published = pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)


@cache
def config_of(file):
    return parse_train(file, [])[0]


def chain(file):
    """The file, its base, the base of that, ..."""
    base = yaml.safe_load(file.read_text()).get("base")
    return [file, *chain(file.parent / base)] if base else [file]


def own_keys(file):
    """What a file says itself, in dotted form."""
    keys = (re.sub(r"\.args\..*", ".args", key) for key in flat(yaml.safe_load(file.read_text())))
    return [key for key in dict.fromkeys(keys) if key != "base"]


def comments(file):
    """The lines at the top of a file that start with #, as one."""
    lines = file.read_text().split("\n\n")[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines)


def build(config):
    data = config.data.name
    chans = {"digits": 1}.get(data, 2 if data in EVENTS else 3)
    return qkformer.create_model(
        config.model.name, num_classes=CLASSES[data], in_chans=chans, **config.model.arguments()
    )


# ------------------------------------------------------------------------------- what a file says


@every_file
def test_every_key_is_spelled_out_and_none_twice(file):
    assert set(read_config(file)) == KEYS.keys()
    *above, last = chain(file)
    assert "base" not in yaml.safe_load(last.read_text())
    for each in above:  # a short file says what differs, and nothing else
        base = read_config(each.parent / yaml.safe_load(each.read_text())["base"])
        differing = {key for key, value in read_config(each).items() if base.get(key) != value}
        assert set(own_keys(each)) == differing, each.name


def test_a_base_is_no_run():
    bases = sorted((ROOT / "configs" / "base").glob("*.yml"))
    assert {chain(file)[-1] for file in PUBLISHED} <= set(bases)
    for file in bases:
        assert read_config(file).keys() == KEYS.keys() - {"model.name"}
        assert "No run: a file on top of it names a model." in comments(file)


def test_a_copy_of_the_folder_says_the_same(tmp_path):
    copy = shutil.copytree(ROOT / "configs", tmp_path / "copy")
    for file in FILES:
        assert read_config(copy / file.name) == read_config(file)


@published
def test_the_model_has_the_parameters_that_the_comment_gives(file):
    config = config_of(file)
    with torch.device("meta"):
        count = count_parameters(build(config))
    assert f" {count:,} parameters" in comments(file)
    assert f", T = {config.model.T}. " in comments(file)
    if "spikformer" in file.stem:  # whose published files hold layers that are not in use
        unused = 18_944 if config.data.name in EVENTS else 6_144
        assert f"as parameters too: {(count + unused) / 1e6:.2f} M." in comments(file)


@every_file
def test_the_comment_says_how_to_start_the_run_on_the_data_of_the_file(file):
    config, text = config_of(file), comments(file)
    folder = FOLDERS.get(config.data.name, config.data.name)
    launcher = "torchrun --nproc_per_node=8" if config.data.name == "imagenet" else "python"
    assert f"{launcher} {folder}/train.py --config configs/{file.name}" in text


@published
def test_a_file_is_named_after_its_data_and_model(file):
    config = config_of(file)
    family = re.match(r"(ms_qkformer|qkformer|maxformer|spikformer)_(\d+_\d+)$", config.model.name)
    data = config.data.name.replace("-", "_")
    size = f"_{family[2]}" if data == "imagenet" else ""
    pixels = "" if config.data.image_size in (224, 32, 128) else f"_{config.data.image_size}"
    steps = "_T1" if config.model.T == 1 else ""
    released = "_released" if file.stem.endswith("_released") else ""
    assert file.stem == f"{data}_{family[1]}{size}{pixels}{steps}{released}"


def test_every_published_run_has_a_file():
    small = product(
        ("cifar10", "cifar100", "cifar10_dvs", "dvs128_gesture"),
        ("qkformer", "ms_qkformer", "maxformer", "spikformer"),
    )
    runs = {f"{data}_{family}" for data, family in small} | {"dvs128_gesture_qkformer_released"}
    runs |= {f"imagenet_qkformer_10_{size}" for size in (384, 512, 768)}
    runs |= {f"imagenet_qkformer_10_768_{rest}" for rest in ("T1", "288", "384")}
    runs |= {"imagenet_ms_qkformer_10_384", "imagenet_ms_qkformer_10_768_T1"}
    runs |= {f"imagenet_maxformer_10_{rest}" for rest in ("384", "512", "768", "512_T1", "768_T1")}
    assert {file.stem for file in PUBLISHED} == runs


# Top-1 accuracies of shared/reference/results.md, %; None: not in it.
ACCURACY = {
    "imagenet_qkformer_10_384": 78.80,
    "imagenet_qkformer_10_512": 82.04,
    "imagenet_qkformer_10_768": 84.22,
    "imagenet_qkformer_10_768_T1": 81.69,
    "imagenet_qkformer_10_768_288": 85.25,
    "imagenet_qkformer_10_768_384": 85.65,
    "imagenet_ms_qkformer_10_384": 76.48,
    "imagenet_ms_qkformer_10_768_T1": 77.78,
    "imagenet_maxformer_10_768": 82.39,
    "cifar10_qkformer": 96.18,
    "cifar10_ms_qkformer": 96.84,
    "cifar10_spikformer": 95.51,
    "cifar100_qkformer": 81.15,
    "cifar100_ms_qkformer": 81.57,
    "cifar100_spikformer": 78.21,
    "dvs128_gesture_qkformer": 98.6,
    "dvs128_gesture_qkformer_released": 98.6,
    "dvs128_gesture_ms_qkformer": 98.6,
    "dvs128_gesture_spikformer": 98.3,
    "cifar10_dvs_qkformer": 84.0,
    "cifar10_dvs_ms_qkformer": 82.3,
    "cifar10_dvs_spikformer": 80.9,
}


@published
def test_the_comment_gives_the_published_accuracy_or_that_there_is_none(file):
    found = re.search(r"Published: ([\d.]+) %", comments(file))
    assert (float(found[1]) if found else None) == ACCURACY.get(file.stem)
    assert found or "Accuracy: not known to us." in comments(file)


# ------------------------------------------------------------------------------------- the recipes

# Of shared/reference/recipes.md, by data set; the keys of "all" are those of every published run.
RECIPES = {
    "all": {
        "model.ssa": "fixed",
        "model.neuron": "lif",
        "model.drop_path_rate": 0.0,
        "data.val_fraction": 0.0,
        "augmentation.hflip": 0.5,
        "augmentation.shift": 0,
        "loss.label_smoothing": 0.1,
        "augmentation.repeats": 1,
        "augmentation.cutmix_alpha": 0.0,
        "augmentation.cutout": 0,
        "loss.name": "cross_entropy",
        "loss.tet_lambda": None,
        "loss.teacher": None,
        "optimizer.name": "adamw",
        "optimizer.layer_decay": None,
        "optimizer.args": {},
        "optimizer.betas": (0.9, 0.999),
        "optimizer.clip_grad_norm": None,
        "optimizer.ema_decay": None,
        "compute.precision": "fp16",
        "compute.sync_batchnorm": False,
    },
    "imagenet": {
        "epochs": 200,
        "seed": 0,
        "model.mlp_ratio": 4.0,
        "data.image_size": 224,
        "data.crop_pct": None,
        "augmentation.crop_scale": (0.08, 1.0),
        "augmentation.crop_ratio": (3 / 4, 4 / 3),
        "augmentation.auto_augment": "rand-m9-mstd0.5-inc1",
        "augmentation.erasing_prob": 0.25,
        "augmentation.erasing_mode": "pixel",
        "augmentation.mixup_alpha": 0.0,
        "optimizer.lr": 6e-4,
        "optimizer.lr_per_batch": 256,
        "optimizer.weight_decay": 0.05,
        "schedule.name": "cosine_per_step",
        "schedule.warmup_epochs": 5,
        "schedule.warmup_lr": 0.0,
        "schedule.min_lr": 1e-6,
        "schedule.cooldown_epochs": 0,
    },
    "cifar10": {
        "epochs": 400,
        "seed": 42,
        "model.T": 4,
        "model.mlp_ratio": 4.0,
        "data.image_size": 32,
        "data.batch_size": 64,
        "data.crop_pct": 1.0,
        "augmentation.crop_scale": (1.0, 1.0),
        "augmentation.crop_ratio": (1.0, 1.0),
        "augmentation.auto_augment": "rand-m9-n1-mstd0.4-inc1",
        "augmentation.erasing_prob": 0.25,
        "augmentation.erasing_mode": "const",
        "augmentation.mixup_alpha": 0.5,
        "augmentation.mixup_prob": 1.0,
        "augmentation.mixup_off_epoch": 200,
        "optimizer.lr": 1e-3,
        "optimizer.lr_per_batch": None,
        "optimizer.weight_decay": 0.06,
        "optimizer.accumulation_steps": 1,
        "schedule.name": "cosine_per_epoch",
        "schedule.warmup_epochs": 20,
        "schedule.warmup_lr": 1e-5,
        "schedule.min_lr": 1e-5,
        "schedule.cooldown_epochs": 10,
    },
    "cifar10-dvs": {
        "epochs": 96,
        "seed": 2021,
        "model.T": 16,
        "data.image_size": 128,
        "data.batch_size": 16,
        "data.split": "released",
        "augmentation.crop_scale": None,
        "augmentation.auto_augment": "event",
        "augmentation.erasing_prob": 0.0,
        "augmentation.mixup_alpha": 0.5,
        "augmentation.mixup_prob": 0.5,
        "augmentation.mixup_off_epoch": 75,
        "optimizer.lr": 5e-3,
        "optimizer.lr_per_batch": None,
        "optimizer.weight_decay": 0.06,
        "optimizer.accumulation_steps": 1,
        "schedule.name": "cosine_per_epoch",
        "schedule.warmup_epochs": 10,
        "schedule.warmup_lr": 1e-5,
        "schedule.min_lr": 1e-5,
        "schedule.cooldown_epochs": 10,
    },
}
RECIPES["cifar100"] = RECIPES["cifar10"]
RECIPES["dvs128-gesture"] = RECIPES["cifar10-dvs"] | {
    "epochs": 192,
    "data.split": None,
    "optimizer.lr": 1e-3,
    "schedule.min_lr": 2e-5,
}
FINE_TUNING = {  # what is ours, but for the lengths: 224 px ended with epoch 199, these files are
    # of epochs 217 and 203
    "optimizer.lr": 2e-5,
    "schedule.warmup_epochs": 0,
}


def value_of(config, key):
    section, _, inner = key.rpartition(".")
    return getattr(getattr(config, section) if section else config, inner)


@published
def test_a_run_follows_the_recipe_of_its_data(file):
    config = config_of(file)
    recipe = RECIPES["all"] | RECIPES[config.data.name]
    if config.model.weights:
        size = int(file.stem[-3:])
        recipe |= FINE_TUNING | {
            "data.image_size": size,
            "epochs": {288: 217, 384: 203}[size] - 199,
        }
    assert {key: value_of(config, key) for key in recipe} == recipe


def test_a_step_on_imagenet_has_as_many_samples_as_in_the_recipe():
    for file in (file for file in PUBLISHED if "imagenet" in file.stem):
        config, text = config_of(file), "".join(part.read_text() for part in chain(file))
        step = (config.data.batch_size, config.optimizer.accumulation_steps)
        total = step[0] * 8 * step[1]
        if config.model.weights:  # ours, with the memory that larger images take
            assert total == 512
        else:
            assert step == ((24, 3) if "_10_768" in config.model.name else (32, 2)), file.name
        assert f"x 8 GPUs x {step[1]} accumulation steps = {total} per step" in text, file.name
        said = re.search(
            rf"lr: {config.optimizer.lr:.1e} .*?(\S+) for {total}\b".replace("e-0", "e-"), text
        )
        assert float(said[1]) == pytest.approx(config.optimizer.peak_lr(total)), file.name


def test_the_width_of_event_models_is_the_papers_and_on_gesture_also_the_releases():
    for file in PUBLISHED:
        config = config_of(file)
        if config.data.name in EVENTS:
            released = file.stem == "dvs128_gesture_qkformer_released"
            family = config.model.name.removesuffix("_2_256")
            expected = 4.0 if released or family == "spikformer" else 1.0
            assert config.model.mlp_ratio == expected, file.name


# ------------------------------------------------------------------------------------- the folders


@pytest.mark.parametrize("folder", sorted(CLASSES.keys() - FOLDERS.keys()))
def test_a_folders_default_configuration_is_of_its_data(folder):
    for command in ("train", "test"):
        text = (ROOT / folder / f"{command}.py").read_text()
        (name,) = set(re.findall(r"\w+\.yml", text))
        assert config_of(ROOT / "configs" / name).data.name == folder
        assert command in text


@pytest.mark.slow
def test_a_folders_command_starts_with_its_default_configuration():
    argv = [sys.executable, str(ROOT / "cifar10-dvs" / "train.py"), "--print_config"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/")
    printed = yaml.safe_load(done.stdout)
    assert (printed["data"]["name"], printed["epochs"]) == ("cifar10-dvs", 96)


# ------------------------------------------------------------------------------------ two steps

# Small images, and narrow models where a step takes longer than a moment; depths stay.
IMAGE_SIZE = {"imagenet": 64, "cifar10": 32, "cifar100": 32, "dvs128-gesture": 32}
IMAGE_SIZE |= {"cifar10-dvs": 32, "digits": 12, "digits-dvs": 32}
NARROW = {"embed_dim": 64, "num_heads": 4}


def synthetic(name, size, T, samples):
    """A data set in the form of the real one, with random content."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES[name], (samples,), generator=generator)
    if name in EVENTS:
        frames = torch.randint(5, (samples, T, 2, size, size), generator=generator).to(torch.int16)
        data = TensorDataset(frames, labels)
        return EventData(data, data, num_classes=CLASSES[name], size=size)
    chans = 1 if name == "digits" else 3
    shape = (samples, chans, size + 8, size + 4)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    data = TensorDataset(images, labels)
    return ImageData(data, data, CLASSES[name], mean=(0.5,) * chans, std=(0.25,) * chans)


def cheap(file, monkeypatch, **changes):
    """The configuration of a file made cheap, on synthetic data of two steps and one more sample.

    Args:
        changes: of the `model` section.
    """
    config = config_of(file)
    name, args = config.data.name, config.model.args
    args = args if name in (*EVENTS, "digits") else args | NARROW
    model = replace(config.model, **{"weights": None, "args": args, **changes})
    data = replace(config.data, image_size=IMAGE_SIZE[name], batch_size=2, workers=0)
    samples = 2 * data.batch_size * config.optimizer.accumulation_steps + 1

    def source(config, *, T, training):
        return synthetic(name, config.image_size, T, samples)

    monkeypatch.setitem(registry.DATASETS, name, source)
    return replace(config, model=model, data=data)


# One of every family on every recipe: other files differ in width and T.
STEPS = {
    (chain(file)[-1], re.sub(r"_\d+_\d+$", "", config_of(file).model.name)): file
    for file in (*PUBLISHED, *DEMOS)
}


@pytest.mark.slow
@pytest.mark.parametrize("file", STEPS.values(), ids=lambda file: file.stem)
def test_two_steps_of_training_reach_every_weight(file, monkeypatch, tmp_path):
    monkeypatch.setitem(NEURONS, "lif", Eager)
    config = replace(cheap(file, monkeypatch), epochs=1)
    config = replace(config, schedule=replace(config.schedule, cooldown_epochs=0))
    run_training(config, TrainOptions(tmp_path, "none", "cpu"))
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert min(line["firing_rate"].values()) > 0
    assert 0 < line["train_loss"] < 20
    content = read_checkpoint(tmp_path / "last.pth")
    assert all(value.isfinite().all() for value in content["model"].values())
    moments = content["optimizer"]["state"].values()
    assert {int(each["step"]) for each in moments} == {2}
    assert len(moments) == len(list(build(config).parameters()))
    assert all(each["exp_avg"].any() for each in moments)  # which weight decay leaves alone


FROM_WEIGHTS = [file for file in PUBLISHED if config_of(file).model.weights]


def test_runs_on_larger_images_start_from_the_weights_of_the_published_size():
    assert [file.stem[-4:] for file in FROM_WEIGHTS] == ["_288", "_384"]
    for file in FROM_WEIGHTS:
        config = config_of(file)
        first = config_of(ROOT / "configs" / f"{file.stem[:-4]}.yml")
        assert config.model.weights == f"runs/{file.stem[:-4]}/best.pth"
        assert replace(config.model, weights=None) == first.model


@pytest.mark.slow
def test_a_run_from_weights_begins_with_them(monkeypatch, tmp_path, capsys):
    weights, output = tmp_path / "weights.pth", tmp_path / "run"
    config = cheap(FROM_WEIGHTS[0], monkeypatch, weights=str(weights))
    # steps so small that the weights stay what they were
    still = replace(config.optimizer, lr=1e-30), replace(config.schedule, min_lr=0.0)
    config = replace(config, epochs=1, seed=1, optimizer=still[0], schedule=still[1])
    torch.manual_seed(0)
    saved = build(config).state_dict()
    torch.save({"model": saved}, weights)
    run_training(config, TrainOptions(output, "none", "cpu"))
    assert f"starts from {weights}" in capsys.readouterr().out
    trained = read_checkpoint(output / "last.pth")["model"]
    assert trained.keys() == saved.keys()
    for name, _ in build(config).named_parameters():
        torch.testing.assert_close(trained[name], saved[name], rtol=0, atol=1e-20)
    statistics = [name for name in saved if name.endswith("running_mean")]
    assert any(not trained[name].equal(saved[name]) for name in statistics)  # it did train


def test_a_run_from_weights_that_are_not_there_does_not_begin(monkeypatch, tmp_path):
    config = cheap(FROM_WEIGHTS[0], monkeypatch, weights=str(tmp_path / "weights.pth"))
    with pytest.raises(ConfigError, match=r"model\.weights: .*weights\.pth"):
        run_training(config, TrainOptions(tmp_path / "run", "none", "cpu"))
    assert not (tmp_path / "run" / "last.pth").exists()
