"""The scripts of every data set, on small data in the real formats, as users start them.

Train two epochs, go on to a third, test: test.py says what train.py reported.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from conftest import firing, make_fire
from data.event_files import write_cifar10_dvs, write_dvs128_gesture
from image_files import write_cifar10, write_cifar100, write_imagenet

import qkformer
from qkformer.checkpoint.io import read_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
# passes --local-rank=N to the script
LAUNCH = ("-m", "torch.distributed.launch", "--standalone", "--nproc_per_node=2")
IMAGENET = {
    "data.image_size": 64,
    "model.args": "{embed_dim: 48, num_heads: 2, depths: [1, 1, 1]}",
    "optimizer.lr": 1e-2,
}
CIFAR = {
    "model.args": "{embed_dim: 32, num_heads: 2}",
    "model.T": 1,
    "augmentation.mixup_off_epoch": 1,
}
EVENTS = {**CIFAR, "model.args": "{embed_dim: 32, num_heads: 2, depths: [1, 1]}", "model.T": 3}


@dataclass(frozen=True)
class Case:
    """A data set's scripts.

    Attributes:
        folder: Of the scripts.
        write: Writes the data set to a folder.
        model: Name, classes and input channels of the model.
        samples: Number of test samples.
        options: Keys that make the run small.
    """

    folder: str
    write: Callable[[Path], object]
    model: tuple[str, int, int]
    samples: int
    options: dict[str, object]


GESTURES = Case(
    "dvs128-gesture",
    lambda root: write_dvs128_gesture(root, train=("user01_led",), test=("user24_led",)),
    ("qkformer_2_256", 11, 2),
    12,
    EVENTS,
)
CASES = [
    Case(
        "imagenet",
        lambda root: write_imagenet(root, val=5),
        ("qkformer_10_384", 3, 3),
        15,
        IMAGENET,
    ),
    Case("cifar10", lambda root: write_cifar10(root, 4), ("qkformer_4_384", 10, 3), 20, CIFAR),
    Case("cifar100", lambda root: write_cifar100(root, 1), ("qkformer_4_384", 100, 3), 100, CIFAR),
    GESTURES,
    Case(
        "cifar10-dvs",
        lambda root: write_cifar10_dvs(root, per_class=2),
        ("qkformer_2_256", 10, 2),
        10,
        EVENTS,
    ),
]


def start(folder, script, values, launch=()):
    """Run a script in its folder, in this process or by a launcher."""
    values = {"device": "cpu", "data.workers": 1 if launch else 0, **values}
    arguments = [f"{script}.py", *(f"--{key}={value}" for key, value in values.items())]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT / folder)
        if launch:
            patch.setenv("OMP_NUM_THREADS", "1")
            command = [sys.executable, *launch, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, done.stderr
        else:
            patch.setattr(sys, "argv", arguments)
            runpy.run_path(arguments[0], run_name="__main__")


def written(case, folder):
    """The data set, and weights with which the neurons fire: the keys of a run on them."""
    case.write(folder / "data")
    name, num_classes, in_chans = case.model
    options = yaml.safe_load(case.options["model.args"])
    model = qkformer.create_model(name, num_classes=num_classes, in_chans=in_chans, **options)
    torch.save({"model": make_fire(model).state_dict()}, folder / "weights.pth")
    data = {"data.root": folder / "data", "data.batch_size": 4, **case.options}
    run = {"output": folder / "run", "schedule.cooldown_epochs": 0}
    return data, {**data, **run, "model.weights": folder / "weights.pth"}


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def check_test(case, data, output, launch=()):
    """test.py says of the last checkpoint what train.py said."""
    values = {key: value for key, value in data.items() if key.startswith(("data", "model"))}
    start(case.folder, "test", {**values, "checkpoint": output / "last.pth"}, launch)
    results = json.loads((output / "results.json").read_text())
    assert results["images"] == case.samples
    assert results["processes"] == (2 if launch else 1)
    reported = metrics(output)[-1]
    for name in ("acc1", "acc5"):
        assert results[name] == reported[f"test_{name}"]
    assert results["loss"] == pytest.approx(reported["test_loss"], rel=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder)
def test_train_go_on_test(case, tmp_path, capsys):
    data, training = written(case, tmp_path)
    output = training["output"]
    for epochs, resume in ((2, "auto"), (3, output / "last.pth")):
        start(case.folder, "train", {**training, "epochs": epochs, "resume": resume})
        assert [line["epoch"] for line in metrics(output)] == list(range(epochs))
    printed = capsys.readouterr().out
    assert "goes on from" in printed
    assert "last epoch (2)" in printed and "chosen on the test set itself" in printed
    with firing() as fired:
        check_test(case, data, output)
    assert fired and all(fired.values())


@pytest.mark.slow
def test_two_processes_train_and_as_many_or_one_test(tmp_path):
    data, training = written(GESTURES, tmp_path)
    start(GESTURES.folder, "train", {**training, "epochs": 1}, TORCHRUN)
    with firing() as fired:
        check_test(GESTURES, data, training["output"])
    assert fired and all(fired.values())
    check_test(GESTURES, data, training["output"], LAUNCH)


# ------------------------------------------------------------------------- data that go wrong


@pytest.fixture
def tiny_imagenet(tmp_path):
    write_imagenet(tmp_path / "data")
    return tmp_path


def train_imagenet(folder, changes=None):
    values = {"data.root": folder / "data", "data.batch_size": 4, "output": folder / "run"}
    values |= {"epochs": 2, "optimizer.accumulation_steps": 1, "model.T": 1, **IMAGENET}
    start("imagenet", "train", values | (changes or {}))


def damage(folder, part="train"):
    path = sorted((folder / "data" / part).rglob("*.JPEG"))[5]
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_and_stops_the_run(tiny_imagenet, capsys, workers):
    path = damage(tiny_imagenet)
    with pytest.raises(SystemExit) as stop:
        train_imagenet(tiny_imagenet, {"data.workers": workers})
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(f"error: cannot read {path}: ") and error.count("\n") == 1


def test_damaged_images_are_left_out_and_counted_on_request(tiny_imagenet, capsys):
    path = damage(tiny_imagenet)
    train_imagenet(tiny_imagenet, {"data.on_damaged": "skip"})
    out, err = capsys.readouterr()
    assert out.count("1 samples could not be read and were left out") == 2
    assert err.count(f"left out: {path}: ") == 1
    lines = (tiny_imagenet / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["damaged_samples"] for line in lines] == [1, 1]


@pytest.mark.parametrize("on_damaged", ["error", "skip"])
def test_a_data_folder_that_vanishes_is_one_clear_error(
    tiny_imagenet, capsys, monkeypatch, on_damaged
):
    """As soon as the first epoch's checkpoint is there."""
    real = os.replace

    def vanishing(source, target):
        real(source, target)
        if Path(target).name == "last.pth":
            shutil.rmtree(tiny_imagenet / "data")

    monkeypatch.setattr(os, "replace", vanishing)
    with pytest.raises(SystemExit) as stop:
        train_imagenet(tiny_imagenet, {"data.on_damaged": on_damaged})
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "No such file or directory" in error and error.count("\n") == 1
    assert read_checkpoint(tiny_imagenet / "run/last.pth")["epoch"] == 0


def measure_imagenet(folder, changes=None):
    values = {"data.root": folder / "data", "model.T": 1, "model.args": IMAGENET["model.args"]}
    values |= {"data.image_size": 64, "checkpoint": folder / "run/last.pth"}
    start("imagenet", "test", values | (changes or {}))
    return json.loads((folder / "run/results.json").read_text())


def test_testing_needs_no_training_images(tiny_imagenet):
    train_imagenet(tiny_imagenet, {"epochs": 1})
    shutil.rmtree(tiny_imagenet / "data/train")
    assert measure_imagenet(tiny_imagenet)["images"] == 12


def test_images_left_out_of_a_test_are_named(tiny_imagenet, capsys):
    train_imagenet(tiny_imagenet, {"epochs": 1})
    path = damage(tiny_imagenet, "val")
    results = measure_imagenet(tiny_imagenet, {"data.on_damaged": "skip", "ssa": "both"})
    assert [results[ssa]["damaged"] for ssa in ("fixed", "original")] == [1, 1]
    assert capsys.readouterr().err.count(f"left out: {path}: ") == 1
