"""Whole runs on a few images: files, resume, refusals; and that testing confirms training."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from same import assert_same
from training.few import metrics, register, train, write_config

from qkformer.checkpoint.io import file_md5, read_checkpoint, save_checkpoint
from qkformer.data.inputs import Inputs
from qkformer.files import Lock
from qkformer.neurons import LIF, NEURONS
from qkformer.training import checkpointing, main
from qkformer.training import train as train_module
from qkformer.training.metrics import TrainingError

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


class LeakyReLU(LIF):
    """A neuron through which anything passes."""

    def forward(self, x):
        return torch.nn.functional.leaky_relu(x)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The models here are too small to share; several threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    register(monkeypatch)


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


def refused(config, output, *options, capsys):
    with pytest.raises(SystemExit) as stop:
        train(config, output, *options)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    return error


def stop_before(monkeypatch, epoch, error=KeyboardInterrupt):
    """Let the next training stop when it comes to an epoch."""
    real = train_module.train_one_epoch

    def stopping(run, at, *options):
        if at == epoch:
            monkeypatch.setattr(train_module, "train_one_epoch", real)
            raise error
        return real(run, at, *options)

    monkeypatch.setattr(train_module, "train_one_epoch", stopping)


def assert_same_run(one, other):
    for name in ("last.pth", "best.pth"):
        assert_same(read_checkpoint(one / name), read_checkpoint(other / name))
    assert metrics(one) == metrics(other)


# ------------------------------------------------------------------------------------- a run


def test_a_run_leaves_its_files_and_what_they_say_agrees(tmp_path, config, capsys):
    output = tmp_path / "run"
    train(config, output)
    assert sorted(os.listdir(output)) == [
        ".lock",
        "best.pth",
        "config.yml",
        "environment.json",
        "last.pth",
        "metrics.jsonl",
        "previous.pth",
        "tensorboard",
    ]
    lines = metrics(output)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    names = "epoch train_lr train_loss train_acc1 test_loss test_acc1 test_acc5 n_parameters"
    assert set(names.split()) <= lines[0].keys()
    best = max(lines, key=lambda line: line["test_acc1"])
    for name, line in (("last.pth", lines[-1]), ("best.pth", best)):
        content = read_checkpoint(output / name)
        assert (content["epoch"], content["acc1"]) == (line["epoch"], line["test_acc1"])
        assert Inputs(**content["inputs"]) == Inputs(("0", "1", "2"), (0.4,), (0.3,))
    out = capsys.readouterr().out
    assert out.count("test acc1") == out.count("best epoch") + out.count("last epoch") == 2
    assert best["test_acc1"] > 90
    assert min(line["test_loss"] for line in lines) < 0.7 * lines[0]["test_loss"]


@pytest.mark.parametrize("name", ["best.pth", "last.pth"])
def test_testing_confirms_to_the_digit_what_training_reported(tmp_path, config, name, capsys):
    output = tmp_path / "run"
    train(config, output, "--epochs", "3")
    checkpoint = output / name
    # from the run's own configuration, which must be enough
    main.test(output / "config.yml", ["--checkpoint", str(checkpoint), "--device", "cpu"])
    results = json.loads((output / "results.json").read_text())
    line = metrics(output)[results["epoch"]]
    assert results["acc1"] == line["test_acc1"]
    assert results["acc5"] == line["test_acc5"]
    assert results["loss"] == line["test_loss"]
    assert results["parameters"] == line["n_parameters"]
    assert results["checkpoint_md5"] == file_md5(checkpoint)
    assert results["images"] == 20
    assert (results["model"], results["T"], results["ssa"]) == ("qkformer_4_384", 1, "fixed")
    assert results["input_size"] == [1, 8, 8]
    assert {"qkformer", "torch", "timm", "spikingjelly", "python"} <= results["versions"].keys()
    assert str(results["acc1"]) in capsys.readouterr().out


def test_the_seed_decides_everything(tmp_path, config):
    for name, seed in (("one", "1"), ("same", "1"), ("other", "2")):
        train(config, tmp_path / name, "--epochs", "1", "--seed", seed)
    assert_same_run(tmp_path / "one", tmp_path / "same")
    assert metrics(tmp_path / "one") != metrics(tmp_path / "other")


# ------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        train(write_config(folder), folder / "run")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [[0], [2], [1, 2, 3]], ids=str)
def test_an_interrupted_run_ends_bit_for_bit_as_one_that_was_not(
    tmp_path, config, monkeypatch, uninterrupted, epochs
):
    output = tmp_path / "run"
    for epoch in epochs:
        stop_before(monkeypatch, epoch)
        with pytest.raises(SystemExit) as stop:
            train(config, output)
        assert stop.value.code == 130
    torch.manual_seed(99)  # a new process would have other random numbers
    train(config, output)
    assert_same_run(output, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["save_checkpoint", "write_best", "write_text", "epoch"])
def test_a_run_killed_between_its_files_ends_the_same_too(
    tmp_path, config, monkeypatch, uninterrupted, kill
):
    class Killed(BaseException):
        """What no handler catches."""

    def killed(*_, **__):
        raise Killed

    output = tmp_path / "run"
    stop_before(monkeypatch, 2)
    with pytest.raises(SystemExit):
        train(config, output)
    owner = {"save_checkpoint": checkpointing, "write_best": checkpointing.Checkpoints}
    owner |= {"write_text": train_module}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner.get(kill, train_module.RunLog), kill, killed)
        train(config, output)
    train(config, output)
    assert_same_run(output, uninterrupted)


def test_a_run_killed_while_its_files_move_goes_on_from_the_newest(
    tmp_path, config, monkeypatch, uninterrupted, capsys
):
    """The new file is whole before the old ones move up, and the newest there is from then on."""
    output = tmp_path / "run"
    stop_before(monkeypatch, 3)
    with pytest.raises(SystemExit):
        train(config, output)
    (output / "last.pth").rename(output / ".next.pth")
    (output / "previous.pth").rename(output / "last.pth")
    train(config, output)
    assert "goes on from" in capsys.readouterr().out
    assert not (output / ".next.pth").exists()
    assert read_checkpoint(output / "previous.pth")["epoch"] == 2
    assert_same_run(output, uninterrupted)


def test_a_path_goes_on_with_the_configured_optimizer(tmp_path, config, capsys):
    train(config, tmp_path / "old", "--epochs", "1")
    changed = ("--optimizer.weight_decay", "0.5", "--optimizer.betas", "[0.5, 0.75]")
    resume = ("--resume", str(tmp_path / "old/last.pth"), "--epochs", "2")
    train(config, tmp_path / "new", *changed, *resume)
    assert "with optimizer.weight_decay: 0.05 -> 0.5" in capsys.readouterr().out
    groups = read_checkpoint(tmp_path / "new/last.pth")["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.5]
    assert all(group["betas"] == (0.5, 0.75) for group in groups)
    plain = tmp_path / "plain"
    train(config, plain, *resume)
    assert metrics(plain)[1]["train_loss"] != metrics(tmp_path / "new")[1]["train_loss"]


def test_another_optimizer_cannot_go_on_from_what_the_first_remembers(tmp_path, config, capsys):
    train(config, tmp_path / "old", "--epochs", "1")
    resume = ("--resume", str(tmp_path / "old/last.pth"), "--optimizer.name", "lamb")
    with pytest.raises(SystemExit):
        train(config, tmp_path / "new", *resume)
    assert "optimizer.name: " in (error := capsys.readouterr().err)
    assert "adamw remembers, lamb cannot go on" in error


@pytest.mark.parametrize("there", [True, False], ids=["of a run", "new"])
def test_a_dry_run_says_what_a_run_would_take_and_leaves_nothing(tmp_path, config, capsys, there):
    output = tmp_path / "runs/few"
    if there:
        train(config, output, "--epochs", "1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    train(config, output, "--epochs", "1", "--dry_run")
    out = capsys.readouterr().out
    assert ("goes on from" in out) == there
    assert "56 training and 20 test samples" in out
    assert re.search(r"a step takes \S+ s, a batch in testing \S+ s; \d+ MiB of memory", out)
    assert "an epoch of 14 steps and its tests would take" in out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert output.exists() == there
    error = refused(config, config, "--dry_run", capsys=capsys)
    assert f"--output {config}" in error


def test_a_dry_run_times_a_step_where_an_epoch_has_only_one(tmp_path, config, capsys):
    train(config, tmp_path / "run", "--epochs", "1", "--data.batch_size", "56", "--dry_run")
    out = capsys.readouterr().out
    assert "an epoch of 1 steps" in out
    assert float(re.search(r"a step takes (\S+) s", out)[1]) > 0


def test_the_energy_of_a_run_is_measured_on_request(tmp_path, config):
    train(config, tmp_path / "run", "--epochs", "1", "--log.energy", "true")
    found = json.loads((tmp_path / "run/energy.json").read_text())
    (line,) = metrics(tmp_path / "run")
    assert (found["data"], found["parameters"]) == ("few", line["n_parameters"])
    assert found["energy"]["qkformer"]["mJ"] > 0
    assert all(neuron["rate"] > 0 for neuron in found["neurons"])


def test_steps_are_told_of_within_an_epoch(tmp_path, config, capsys):
    train(config, tmp_path / "run", "--epochs", "1", "--log.every", "7")
    lines = [line for line in capsys.readouterr().out.splitlines() if "epoch 0: step" in line]
    assert [re.search(r"step (\d+)/14", line)[1] for line in lines] == ["7", "14"]
    for line in lines:
        assert re.search(r"loss \S+  lr \S+  \d+ images/s  \d+ % waiting for data", line)


def test_a_finished_run_is_left_as_it_is(tmp_path, config, capsys):
    output = tmp_path / "run"
    train(config, output, "--epochs", "1")
    before = {name: file_md5(output / name) for name in ("last.pth", "best.pth", "metrics.jsonl")}
    train(config, output, "--epochs", "1")
    assert {name: file_md5(output / name) for name in before} == before
    assert capsys.readouterr().out.count("last epoch (0)") == 2


def test_a_lock_that_cannot_be_opened_is_one_clear_error(tmp_path, config, capsys):
    (tmp_path / "run/.lock").mkdir(parents=True)
    error = refused(config, tmp_path / "run", capsys=capsys)
    assert f"--output {tmp_path / 'run'}: .lock: Is a directory" in error


def test_resume_none_does_not_overwrite_a_run(tmp_path, config, capsys):
    train(config, tmp_path / "run", "--epochs", "1", "--resume", "none")
    error = refused(config, tmp_path / "run", "--resume", "none", capsys=capsys)
    assert "last.pth of another run" in error
    assert "--resume auto" in error


@pytest.mark.parametrize("left", ["best.pth", "metrics.jsonl"])
@pytest.mark.parametrize("resume", ["auto", "none"])
def test_what_is_left_of_a_run_is_not_overwritten(tmp_path, config, capsys, left, resume):
    (tmp_path / left).touch()
    assert left in refused(config, tmp_path, "--resume", resume, capsys=capsys)


def test_auto_does_not_go_on_with_a_run_of_another_configuration(tmp_path, config, capsys):
    train(config, tmp_path / "run", "--epochs", "1")
    before = file_md5(tmp_path / "run/config.yml")
    error = refused(config, tmp_path / "run", "--optimizer.lr", "0.5", capsys=capsys)
    assert "epochs: 1 -> 4" in error
    assert "optimizer.lr: 0.005 -> 0.5" in error
    assert file_md5(tmp_path / "run/config.yml") == before


def test_auto_does_not_go_on_with_other_steps(tmp_path, config, capsys):
    """As where the number of processes is another: the learning rate may depend on it."""
    train(config, tmp_path / "run", "--epochs", "1")
    last = tmp_path / "run/last.pth"
    save_checkpoint(read_checkpoint(last) | {"samples_per_step": 8}, last)
    error = refused(config, tmp_path / "run", "--epochs", "1", capsys=capsys)
    assert "samples per step: 8 -> 4" in error
    train(config, tmp_path / "run", "--epochs", "2", "--resume", str(last))
    assert "with samples per step: 8 -> 4" in capsys.readouterr().out
    train(config, tmp_path / "run", "--epochs", "2")


def test_a_folder_is_one_runs_at_a_time(tmp_path, config, capsys):
    def hold(held, done):
        lock = Lock(tmp_path / ".lock")
        lock.take()
        held.set()
        done.wait()

    processes = get_context("fork")
    held, done = processes.Event(), processes.Event()
    other = processes.Process(target=hold, args=(held, done), daemon=True)
    other.start()
    assert held.wait(60)
    assert "another run is writing there" in refused(config, tmp_path, capsys=capsys)
    assert {file.name for file in tmp_path.iterdir()} == {".lock", "few.yml"}
    done.set()
    other.join()
    train(config, tmp_path, "--epochs", "1")


def test_a_run_that_ends_in_its_warm_up_says_so(tmp_path, config, capsys):
    train(config, tmp_path / "run", "--epochs", "1")
    assert "all of epochs: 1 are warm-up" in capsys.readouterr().out


def test_where_and_how_fast_may_change(tmp_path, config, monkeypatch, uninterrupted):
    stop_before(monkeypatch, 3)
    with pytest.raises(SystemExit):
        train(config, tmp_path / "run", "--data.root", "/here", "--model.backend", "torch")
    train(config, tmp_path / "run", "--data.root", "/there")
    assert metrics(tmp_path / "run") == metrics(uninterrupted)


def test_a_path_goes_on_elsewhere_with_a_changed_configuration(tmp_path, config, capsys):
    train(config, tmp_path / "old", "--epochs", "2")
    before = {name: file_md5(tmp_path / "old" / name) for name in ("last.pth", "best.pth")}
    train(config, tmp_path / "new", "--resume", str(tmp_path / "old/last.pth"))
    assert "epochs: 2 -> 4" in capsys.readouterr().out
    assert metrics(tmp_path / "new")[:2] == metrics(tmp_path / "old")
    assert [line["epoch"] for line in metrics(tmp_path / "new")] == [0, 1, 2, 3]
    assert read_checkpoint(tmp_path / "new/best.pth")["epoch"] >= 1
    assert {name: file_md5(tmp_path / "old" / name) for name in before} == before


def test_the_best_weights_are_those_of_the_epoch_that_is_called_the_best(tmp_path, config, capsys):
    """Also where a run goes back to an epoch before its best one."""
    output = tmp_path / "run"
    train(config, output, "--checkpoint.every", "1")
    save_checkpoint(read_checkpoint(output / "best.pth") | {"epoch": 3}, output / "best.pth")
    train(config, output, "--epochs", "2", "--resume", str(output / "epoch-0001.pth"))
    best = read_checkpoint(output / "best.pth")["epoch"]
    assert f"best epoch ({best})" in capsys.readouterr().out.splitlines()[-1]


def test_a_path_does_not_overwrite_another_run(tmp_path, config, capsys):
    for name in ("one", "other"):
        train(config, tmp_path / name, "--epochs", "1")
    resume = ("--resume", str(tmp_path / "one/last.pth"))
    assert "of another run" in refused(config, tmp_path / "other", *resume, capsys=capsys)


def test_a_path_longer_than_the_training_changes_the_runs_own_length(tmp_path, config):
    train(config, tmp_path / "run", "--epochs", "1")
    own = str(tmp_path / "run/last.pth")
    train(config, tmp_path / "run", "--epochs", "2", "--resume", own)
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [0, 1]


def test_unusable_checkpoints_are_named(tmp_path, config, capsys):
    output = tmp_path / "run"
    train(config, output, "--epochs", "1")
    best = str(output / "best.pth")
    resume = ("--epochs", "1", "--resume")
    error = refused(config, tmp_path / "new", *resume, best, capsys=capsys)
    assert "no optimizer, scaler, random, history" in error
    error = refused(config, tmp_path / "new", *resume, "nowhere.pth", capsys=capsys)
    assert "--resume nowhere.pth: no such file; expected auto, none or a checkpoint" in error
    last = str(output / "last.pth")
    wide = ("--model.args.embed_dim", "32")
    error = refused(config, tmp_path / "new", *wide, *resume, last, capsys=capsys)
    assert "does not fit" in error
    truncate(output / "last.pth")
    assert "truncated" in refused(config, output, "--epochs", "1", capsys=capsys)
    (output / "previous.pth").touch()
    error = refused(config, output, "--epochs", "1", capsys=capsys)
    assert "last.pth: truncated" in error and "previous.pth: the file is empty" in error


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(
    tmp_path, config, monkeypatch, uninterrupted, capsys
):
    output = tmp_path / "run"
    stop_before(monkeypatch, 3)
    with pytest.raises(SystemExit):
        train(config, output)
    truncate(output / "last.pth")
    train(config, output)
    out, err = capsys.readouterr()
    assert "last.pth: truncated" in err and "the checkpoint before it takes its place" in err
    assert f"goes on from {output / 'previous.pth'}" in out
    assert_same_run(output, uninterrupted)


def test_copies_of_every_nth_epoch_are_kept_and_can_be_gone_on_from(
    tmp_path, config, uninterrupted
):
    output = tmp_path / "run"
    train(config, output, "--checkpoint.every", "2")
    assert sorted(path.name for path in output.glob("epoch-*")) == [
        "epoch-0001.pth",
        "epoch-0003.pth",
    ]
    for name in ("last.pth", "previous.pth", "epoch-0003.pth"):
        truncate(output / name)
    train(config, output, "--checkpoint.every", "2")
    assert metrics(output) == metrics(uninterrupted)
    one, other = (read_checkpoint(run / "last.pth") for run in (output, uninterrupted))
    assert_same(one["optimizer"], other["optimizer"])


# ----------------------------------------------------------------------------- what goes wrong


def test_a_rate_above_the_scaled_peak_is_refused_before_anything_is_written(
    tmp_path, config, capsys
):
    options = ("--optimizer.lr_per_batch", "256", "--schedule.min_lr", "1e-4")
    error = refused(config, tmp_path / "run", *options, capsys=capsys)
    assert "schedule.min_lr" in error
    assert "(7.81e-05, scaled from 0.005 for 256 samples per step to 4), got 0.0001" in error
    assert not (tmp_path / "run").exists()


def test_training_that_fails_leaves_the_last_good_checkpoint(tmp_path, config, monkeypatch, capsys):
    stop_before(monkeypatch, 2, TrainingError("the loss is nan"))
    with pytest.raises(SystemExit) as stop:
        train(config, tmp_path / "run")
    assert stop.value.code == 1
    assert "the loss is nan" in capsys.readouterr().err
    assert read_checkpoint(tmp_path / "run/last.pth")["epoch"] == 1


def test_a_loss_that_is_no_number_leaves_a_record_of_its_step(tmp_path, config, monkeypatch):
    class PoisonedAugmentation(torch.nn.Module):
        """The fifth batch of the second epoch (of 14 batches each) has a NaN in it."""

        def __init__(self, real):
            super().__init__()
            self.real, self.calls = real, 0

        def forward(self, images, labels, epoch):
            self.calls += 1
            images, targets = self.real(images, labels, epoch)
            return images * (float("nan") if self.calls == 19 else 1), targets

    load = train_module.load_data

    def poisoned(*arguments, **options):
        data = load(*arguments, **options)
        return replace(data, augment=PoisonedAugmentation(data.augment))

    monkeypatch.setattr(train_module, "load_data", poisoned)
    # without the neurons' thresholds in the way, NaN gets to the loss
    monkeypatch.setitem(NEURONS, "leaky", LeakyReLU)
    output = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        train(config, output, "--model.neuron", "leaky")
    assert stop.value.code == 1
    text = (output / "failed_step.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    assert "NaN" in record["losses"]
    assert (record["epoch"], record["step"]) == (1, 4)
    assert len(set(record["samples"])) == 4
    assert record["not_finite"] and record["learning_rate"] > 0
    assert read_checkpoint(output / "last.pth")["epoch"] == 0


def test_a_full_disk_is_one_clear_error_and_the_checkpoint_before_stays(
    tmp_path, config, monkeypatch, uninterrupted, capsys
):
    output = tmp_path / "run"
    stop_before(monkeypatch, 2)
    with pytest.raises(SystemExit):
        train(config, output)
    capsys.readouterr()
    before = file_md5(output / "last.pth")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        error = refused(config, output, capsys=capsys)
    assert "cannot write" in error and "No space left on device" in error
    assert file_md5(output / "last.pth") == before
    train(config, output)
    assert_same_run(output, uninterrupted)


def test_an_output_folder_that_vanishes_is_one_clear_error(tmp_path, config, monkeypatch, capsys):
    real = train_module.train_one_epoch

    def vanishing(run, epoch):
        if epoch == 1:
            shutil.rmtree(tmp_path / "run")
        return real(run, epoch)

    monkeypatch.setattr(train_module, "train_one_epoch", vanishing)
    assert "No such file or directory" in refused(config, tmp_path / "run", capsys=capsys)


def test_held_out_samples_choose_the_best_epoch(tmp_path, config, capsys):
    output = tmp_path / "run"
    train(config, output, "--data.val_fraction", "0.25", "--optimizer.ema_decay", "0.5")
    lines = metrics(output)
    assert "42 training and 20 test samples" in capsys.readouterr().out
    best = max(lines, key=lambda line: line["ema_val_acc1"])
    content = read_checkpoint(output / "best.pth")
    assert (content["epoch"], content["acc1"]) == (best["epoch"], best["ema_val_acc1"])
    for weights, prefix in (("ema", "ema_"), ("trained", "")):
        options = ["--checkpoint", str(output / "best.pth"), "--weights", weights]
        main.test(output / "config.yml", [*options, "--device", "cpu"])
        results = json.loads((output / "results.json").read_text())
        assert results["acc1"] == best[f"{prefix}test_acc1"]
        assert results["loss"] == best[f"{prefix}test_loss"]


@pytest.mark.parametrize(
    ("options", "metric"),
    [
        (("--optimizer.ema_decay", "0.5"), "ema_test_acc1"),
        (("--data.val_fraction", "0.25"), "val_acc1"),
    ],
)
def test_a_run_that_goes_on_may_choose_by_another_accuracy(tmp_path, config, options, metric):
    output = tmp_path / "run"
    train(config, output, "--epochs", "1")
    changed = ("--resume", str(output / "last.pth"), *options)
    train(config, output, "--epochs", "1", *changed)  # nothing is left to do, nor to report
    train(config, output, "--epochs", "2", *changed)
    lines = metrics(output)
    assert metric not in lines[0]
    content = read_checkpoint(output / "best.pth")
    assert (content["epoch"], content["acc1"]) == (1, lines[1][metric])


def test_fine_tuning_starts_from_weights_and_may_have_other_classes(tmp_path, config, capsys):
    train(config, tmp_path / "old", "--epochs", "1")
    weights = str(tmp_path / "old/last.pth")
    tuned = ("--epochs", "1", "--optimizer.lr", "1e-12", "--model.weights", weights)
    train(config, tmp_path / "new", *tuned)
    assert f"starts from {weights}" in capsys.readouterr().out
    old, new = (read_checkpoint(tmp_path / run / "last.pth")["model"] for run in ("old", "new"))
    torch.testing.assert_close(new["head.weight"], old["head.weight"])
    train(config, tmp_path / "headless", *tuned, "--model.skip_head", "true", "--seed", "5")
    other = read_checkpoint(tmp_path / "headless/last.pth")["model"]
    assert (other["head.weight"] - old["head.weight"]).abs().max() > 1e-3
    torch.testing.assert_close(
        other["stages.0.embed.convs.0.conv.weight"], old["stages.0.embed.convs.0.conv.weight"]
    )


@pytest.mark.parametrize(
    "option",
    [
        ["--compute.precision", "bf16"],
        ["--compute.channels_last", "true"],
        ["--compute.grad_checkpointing", "true"],
    ],
    ids=lambda option: option[0],
)
def test_ways_to_compute_train_too(tmp_path, config, option):
    train(config, tmp_path / "run", "--epochs", "1", *option)
    assert metrics(tmp_path / "run")[0]["train_loss"] < 1.3


@pytest.mark.slow
def test_compiled_models_train_too(tmp_path, config, monkeypatch):
    real = torch.nn.Module.compile
    # Inductor takes a minute; what matters here is what is called, and that keys stay
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: real(self, backend="aot_eager"))
    train(config, tmp_path / "run", "--epochs", "1", "--compute.compile", "true")
    plain = tmp_path / "plain"
    train(config, plain, "--epochs", "1")
    one, other = (read_checkpoint(run / "last.pth")["model"] for run in (tmp_path / "run", plain))
    assert one.keys() == other.keys()


def test_float16_is_for_gpus_and_says_so(tmp_path, config, capsys, uninterrupted):
    train(config, tmp_path / "run", "--compute.precision", "fp16")
    assert "fp16 is for GPUs, on the CPU float32 takes its place" in capsys.readouterr().out
    assert metrics(tmp_path / "run") == metrics(uninterrupted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("key", ["compute.sync_batchnorm", "compute.cuda_graph"])
def test_what_is_for_gpus_is_refused(tmp_path, config, capsys, key):
    assert key in refused(config, tmp_path / "run", f"--{key}", "true", capsys=capsys)


def test_both_attentions_are_tested_on_request(tmp_path, config):
    train(config, tmp_path / "run", "--epochs", "2")
    options = ["--checkpoint", str(tmp_path / "run/last.pth"), "--ssa", "both", "--device", "cpu"]
    main.test(config, options)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert [results[mode]["ssa"] for mode in ("fixed", "original")] == ["fixed", "original"]
    assert results["original"]["batch_size"] == 4


def test_other_sizes_and_time_steps_than_trained_are_tested(tmp_path, config):
    train(config, tmp_path / "run", "--epochs", "1")
    options = ["--checkpoint", str(tmp_path / "run/last.pth"), "--device", "cpu"]
    main.test(config, [*options, "--input_size", "16", "--time_steps", "3"])
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["input_size"], results["T"]) == ([1, 16, 16], 3)


@pytest.mark.parametrize("output", ["file", "file/run", "/proc/run"])
def test_an_impossible_output_folder_is_named(tmp_path, config, capsys, output):
    (tmp_path / "file").touch()
    error = refused(config, tmp_path / output, capsys=capsys)
    assert f"--output {tmp_path / output}" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there_is_an_error(tmp_path, config, capsys):
    assert "--device cuda" in refused(config, tmp_path / "r", "--device", "cuda", capsys=capsys)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [("nowhere.pth", "no such file"), (".", "folder"), ("few.yml", "not a checkpoint")],
)
def test_testing_names_a_checkpoint_it_cannot_read(tmp_path, config, capsys, checkpoint, message):
    path = str(tmp_path / checkpoint)
    with pytest.raises(SystemExit) as stop:
        main.test(config, ["--checkpoint", path, "--output", str(tmp_path / "results")])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert path in error and message in error


# ------------------------------------------------------------------------------------ the doors

WINDOWS = """
import signal, sys, types
import spikingjelly.activation_based.neuron, timm, torch, torchvision, torch.utils.tensorboard
locking = types.SimpleNamespace(locking=lambda *_: None, LK_NBLCK=2)
sys.modules.update(fcntl=None, resource=None, msvcrt=locking)
del signal.SIGUSR1
sys.path.insert(0, sys.argv[1])
from training import few
few.register()
few.train(few.write_config(few.Path(".")), "run", "--epochs", "1", "--data.workers", "1")
few.main.test("few.yml", ["--checkpoint", "run/last.pth", "--device", "cpu"])
assert few.records(few.Path("run"))[0]["memory_mib"] is None
"""


@pytest.mark.slow
def test_a_run_needs_no_modules_and_signals_that_windows_lacks(tmp_path):
    command = [sys.executable, "-c", WINDOWS, str(ROOT / "tests")]
    subprocess.run(command, cwd=tmp_path, env=ONE_THREAD, check=True, timeout=300)


@pytest.mark.slow
def test_the_doors_keep_pytorchs_idle_threads_from_spinning_for_long(tmp_path):
    environment = {**ONE_THREAD, "OMP_DISPLAY_ENV": "VERBOSE"}
    environment.pop("GOMP_SPINCOUNT", None)
    done = door("train.py", "--print_config", folder=tmp_path, env=environment)
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr


@pytest.mark.slow
def test_the_demo_runs_end_to_end_from_any_folder(tmp_path):
    tiny = ["--model.args.embed_dim=16", "--model.T=1", "--data.image_size=8"]
    shared = ["--config", str(ROOT / "configs/demo_digits.yml"), *tiny, "--device", "cpu"]
    trained = door("train.py", *shared, "--output", "run", "--epochs", "2", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("test loss") == 2
    tested = door("test.py", *shared, "--checkpoint", "run/best.pth", folder=tmp_path)
    assert tested.returncode == 0, tested.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    best = max(metrics(tmp_path / "run"), key=lambda line: line["test_acc1"])
    assert results["acc1"] == best["test_acc1"]
    assert results["images"] == 360


def door(script, *arguments, folder, env=ONE_THREAD):
    return subprocess.run(
        [sys.executable, str(ROOT / "cifar10" / script), *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
