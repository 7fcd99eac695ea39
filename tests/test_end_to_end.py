"""The scripts of every data set, on small data in the real formats, as users start them.

Train two epochs, go on to a third, test: test.py says what train.py reported.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from data.event_files import write_cifar10_dvs, write_dvs128_gesture
from image_files import write_cifar10, write_cifar100, write_imagenet

from qkformer.checkpoint.io import read_checkpoint
from qkformer.training import run, session

ROOT = Path(__file__).parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# passes --local-rank=N to the script
LAUNCH = ["-m", "torch.distributed.launch", "--standalone", "--nproc_per_node=2"]
IMAGENET = {
    "data.image_size": 64,
    "model.args": "{embed_dim: 48, num_heads: 2, depths: [1, 1, 1]}",
    "optimizer.lr": 1e-2,
}
CIFAR = {"model.args": "{embed_dim: 32, num_heads: 2}", "augmentation.mixup_off_epoch": 1}
EVENTS = {**CIFAR, "model.args": "{embed_dim: 32, num_heads: 2, depths: [1, 1]}", "model.T": 3}


@dataclass(frozen=True)
class Case:
    """How one data set's scripts are started.

    Attributes:
        folder: Of the scripts.
        write: Writes the data set to a folder.
        launch: Starts the processes; empty for one.
        inside: Start in the scripts' folder, as in `cd cifar10 && python train.py`.
        samples: Number of test samples.
        options: Keys that make the run small.
    """

    folder: str
    write: object
    launch: list[str]
    inside: bool
    samples: int
    options: dict = field(default_factory=dict)


CASES = [
    Case("imagenet", lambda root: write_imagenet(root, val=5), TORCHRUN, False, 15, IMAGENET),
    Case("cifar10", write_cifar10, [], True, 20, CIFAR),
    Case("cifar100", write_cifar100, LAUNCH, True, 100, CIFAR),
    Case("dvs128-gesture", write_dvs128_gesture, TORCHRUN, True, 12, EVENTS),
    Case("cifar10-dvs", write_cifar10_dvs, [], False, 10, EVENTS),
]


def start(case, script, arguments, cwd, launch):
    command = [sys.executable, *launch]
    if case.inside:
        command, cwd = [*command, f"{script}.py"], ROOT / case.folder
    else:
        command = [*command, str(ROOT / case.folder / f"{script}.py")]
    return subprocess.run(
        [*command, *arguments, "--device", "cpu"],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


def options(values):
    return [f"--{key}={value}" for key, value in values.items()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder)
def test_train_go_on_test(case, tmp_path):
    case.write(tmp_path / "data")
    output = tmp_path / "run"
    shared = {"data.root": tmp_path / "data", "data.batch_size": 2, "data.workers": 1}
    shared |= case.options
    training = {**shared, "output": output, "schedule.cooldown_epochs": 0}
    lines = []
    for epochs, resume in ((2, "auto"), (3, output / "last.pth")):
        arguments = options({**training, "epochs": epochs, "resume": resume})
        trained = start(case, "train", arguments, tmp_path, case.launch)
        assert trained.returncode == 0, trained.stderr
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == list(range(epochs))
    assert "goes on from" in trained.stdout
    assert "last epoch (2)" in trained.stdout and "chosen on the test set itself" in trained.stdout

    # with as many processes, and with another number of them
    testing = {key: value for key, value in shared.items() if key.startswith(("data", "model"))}
    arguments = options({**testing, "checkpoint": output / "last.pth"})
    for launch in (case.launch, [] if case.launch else TORCHRUN):
        tested = start(case, "test", arguments, tmp_path, launch)
        assert tested.returncode == 0, tested.stderr
        results = json.loads((output / "results.json").read_text())
        assert results["images"] == case.samples
        assert results["processes"] == (2 if launch else 1)
        for name in ("acc1", "acc5"):
            assert results[name] == lines[-1][f"test_{name}"]
        assert results["loss"] == pytest.approx(lines[-1]["test_loss"], rel=1e-12)


# ------------------------------------------------------------------------- data that go wrong


@pytest.fixture
def tiny_imagenet(tmp_path):
    write_imagenet(tmp_path / "data")
    return tmp_path


def train_imagenet(folder, **changes):
    torch.set_num_threads(1)
    values = {"data.root": folder / "data", "data.batch_size": 4, "data.workers": 0}
    values |= {"output": folder / "run", "epochs": 2, "device": "cpu", **IMAGENET}
    values |= {"optimizer.accumulation_steps": 1, "model.T": 1}
    run.train(
        ROOT / "configs/imagenet_qkformer_10_384.yml",
        options(values | {key.replace("__", "."): value for key, value in changes.items()}),
    )


def damage(folder, part="train"):
    path = sorted((folder / "data" / part).rglob("*.JPEG"))[5]
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_and_stops_the_run(tiny_imagenet, capsys, workers):
    path = damage(tiny_imagenet)
    with pytest.raises(SystemExit) as stop:
        train_imagenet(tiny_imagenet, data__workers=workers)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(f"error: cannot read {path}: ") and error.count("\n") == 1


def test_damaged_images_are_left_out_and_counted_on_request(tiny_imagenet, capsys):
    path = damage(tiny_imagenet)
    train_imagenet(tiny_imagenet, data__on_damaged="skip")
    out, err = capsys.readouterr()
    assert out.count("1 samples could not be read and were left out") == 2
    assert err.count(f"left out: {path}: ") == 1
    lines = (tiny_imagenet / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["damaged_samples"] for line in lines] == [1, 1]


@pytest.mark.parametrize("on_damaged", ["error", "skip"])
def test_a_data_folder_that_vanishes_is_one_clear_error(
    tiny_imagenet, capsys, monkeypatch, on_damaged
):
    real = session.train_one_epoch

    def vanishing(*arguments, **options):
        if options["epoch"] == 1:
            shutil.rmtree(tiny_imagenet / "data")
        return real(*arguments, **options)

    monkeypatch.setattr(session, "train_one_epoch", vanishing)
    with pytest.raises(SystemExit) as stop:
        train_imagenet(tiny_imagenet, data__on_damaged=on_damaged)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "No such file or directory" in error and error.count("\n") == 1
    assert read_checkpoint(tiny_imagenet / "run/last.pth")["epoch"] == 0


def measure_imagenet(folder, **changes):
    values = {"data.root": folder / "data", "model.T": 1, "device": "cpu", **IMAGENET, **changes}
    del values["optimizer.lr"]
    run.test(
        ROOT / "configs/imagenet_qkformer_10_384.yml",
        options(values | {"checkpoint": folder / "run/last.pth", "data.workers": 0}),
    )
    return json.loads((folder / "run/results.json").read_text())


def test_testing_needs_no_training_images(tiny_imagenet):
    train_imagenet(tiny_imagenet, epochs=1)
    shutil.rmtree(tiny_imagenet / "data/train")
    assert measure_imagenet(tiny_imagenet)["images"] == 12


def test_images_left_out_of_a_test_are_named(tiny_imagenet, capsys):
    train_imagenet(tiny_imagenet, epochs=1)
    path = damage(tiny_imagenet, "val")
    results = measure_imagenet(tiny_imagenet, **{"data.on_damaged": "skip", "ssa": "both"})
    assert [results[ssa]["damaged"] for ssa in ("fixed", "original")] == [1, 1]
    assert capsys.readouterr().err.count(f"left out: {path}: ") == 1
