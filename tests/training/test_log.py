"""What is said of epochs: lines, metrics.jsonl, TensorBoard."""

import errno
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from qkformer.data.loaders import TrainingBatches
from qkformer.training import log
from qkformer.training.checkpointing import RunState
from qkformer.training.command_line import parse_train
from qkformer.training.config import ConfigError
from qkformer.training.log import RunLog, check_packages
from qkformer.training.metrics import EpochMetrics

DEMO = Path(__file__).resolve().parents[2] / "configs/demo_digits.yml"
BATCHES = TrainingBatches(100, 10, seed=0)


def run_log(folder, history, metric="test_acc1", progress=None, **options):
    argv = [f"--{key.replace('__', '.')}={value}" for key, value in options.items()]
    state = RunState(metric, history, best=0, progress=progress)
    return RunLog(folder, state, parse_train(DEMO, argv)[0], BATCHES)


def record(epoch, **changes):
    values = ("train_lr", "train_loss", "train_acc1", "test_loss", "test_acc1", "test_acc5")
    return {
        "epoch": epoch,
        **dict.fromkeys(values, 0.5),
        "gradient_norm": 1.5,
        "skipped_steps": 0,
        "damaged_samples": 0,
        "images_per_second": 9.0,
        "test_images_per_second": 40.0,
        "data_wait": 0.25,
        "firing_rate": {"stages.0": 0.25, "head_neuron": 0.125},
        "memory_mib": 100.0,
        "n_parameters": 5,
        "seconds": 30.0,
        **changes,
    }


def written(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder):
    """Everything that TensorBoard would show: name -> {epoch: value}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


def tell(folder, history, epochs=3):
    """A sitting that goes on behind all but the last of these epochs."""
    told = run_log(folder, history[:-1], epochs=epochs)
    told.state.history = history
    told.epoch()
    return told


def test_every_epoch_has_one_line_also_where_a_run_went_back(tmp_path):
    history = [record(0), record(1)]
    tell(tmp_path, history)
    assert written(tmp_path) == history
    # the run is killed before its checkpoint, and goes on from epoch 0
    run_log(tmp_path, history[:1])
    assert written(tmp_path) == history[:1]
    tell(tmp_path, history)
    assert written(tmp_path) == history


def test_a_line_is_json_with_everything_that_was_measured(tmp_path):
    history = [record(0, gradient_norm=None, ema_test_acc1=7.5)]
    tell(tmp_path, history)
    assert written(tmp_path) == history
    assert '"gradient_norm": null' in (tmp_path / "metrics.jsonl").read_text()


def test_tensorboard_has_every_metric_once_per_epoch(tmp_path):
    history = [record(0), record(1, train_loss=0.25)]
    for _ in range(2):  # the second time, epoch 1 is done again
        tell(tmp_path, history).epochs.close()
    shown = scalars(tmp_path / "tensorboard")
    rates = {"firing_rate/stages.0", "firing_rate/head_neuron"}
    assert shown.keys() == set(record(0)) - {"epoch", "n_parameters", "firing_rate"} | rates
    assert all(list(values) == [1] for values in shown.values())
    assert shown["train_loss"] == {1: 0.25}
    assert [shown[name][1] for name in sorted(rates)] == [0.125, 0.25]


def test_tensorboard_leaves_out_what_an_epoch_without_an_update_cannot_have(tmp_path):
    told = tell(tmp_path, [record(0, gradient_norm=None)])
    told.state.history.append(record(1))
    told.epoch()
    told.epochs.close()
    shown = scalars(tmp_path / "tensorboard")
    assert shown["gradient_norm"] == {1: 1.5}
    assert list(shown["train_loss"]) == [0, 1]


def test_the_line_of_an_epoch_says_how_far_the_run_has_come(tmp_path, capsys):
    history = [record(0), record(1, train_lr=1.25e-3, test_acc1=81.15, seconds=50.0)]
    tell(tmp_path, history, epochs=410)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("epoch 1 [2/410]")
    for part in ("lr 1.25e-03", "acc1 81.15 %", "acc5 0.50 %", "5h40m left"):
        assert part in line
    assert "9 images/s (25 % waiting for data), in testing 40" in line


def test_samples_that_were_left_out_are_reported_epoch_by_epoch(tmp_path, capsys):
    told = tell(tmp_path, [record(0)])
    assert "could not be read" not in capsys.readouterr().out
    told.state.history.append(record(1, damaged_samples=3))
    told.epoch()
    _, line = capsys.readouterr().out.splitlines()
    assert line == "3 samples could not be read and were left out"


# ------------------------------------------------------------------------------ within an epoch


def progress(steps, **sums):
    return EpochMetrics(done=10 * steps, steps=steps, batches=steps, **sums)


def test_steps_are_told_of_as_means_since_the_last_time(tmp_path):
    told = run_log(tmp_path, [record(0)], log__every=4)
    assert [step for step in range(1, 11) if told.due(step)] == [4, 8]
    told.state.progress = progress(4, loss=8.0, rate=0.4, seconds=2.0, waited=1.0)
    assert told.step(1) == "loss 2.000  lr 1.00e-01  20 images/s  50 % waiting for data"
    told.state.progress = progress(8, loss=12.0, rate=0.6, seconds=6.0, waited=1.0)
    assert told.step(1) == "loss 1.000  lr 5.00e-02  10 images/s  0 % waiting for data"
    told.state.progress = progress(4, loss=2.0, rate=0.2, seconds=1.0)  # of the next epoch
    assert told.step(2).startswith("loss 0.500  lr 5.00e-02  40 images/s")
    told.steps.close()
    shown = scalars(tmp_path / "tensorboard/steps")
    assert shown.keys() == {"loss", "lr", "images_per_second", "data_wait"}
    assert shown["loss"] == {140: 2.0, 180: 1.0, 240: 0.5}  # over samples, 100 an epoch
    assert not run_log(tmp_path, [], log__every=0).due(50)


def test_waiting_for_data_is_explained_once_and_not_of_the_first_steps(tmp_path, capsys):
    told = run_log(tmp_path, [], log__every=4)
    said = []
    for look in range(1, 5):
        progressed = dict(loss=1.0, seconds=4.0 * look, waited=3.0 * max(1, look - 1))
        told.state.progress = progress(4 * look, **progressed)
        told.step(0)
        said.append(capsys.readouterr().out)
    assert [text.count("the loader gives") for text in said] == [0, 0, 1, 0]


def test_an_epoch_gone_on_with_is_told_of_from_there_on(tmp_path):
    told = run_log(tmp_path, [], progress=progress(6, loss=60.0, seconds=99.0), log__every=4)
    told.state.progress = progress(8, loss=62.0, seconds=100.0)
    assert told.step(0).startswith("loss 1.000")


def test_a_disk_that_fills_up_ends_the_curves_and_not_the_run(tmp_path, capsys, monkeypatch):
    told = run_log(tmp_path, [])
    told.state.history = [record(0)]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log.SummaryWriter, "flush", full)
    told.epoch()
    told.epoch()
    reason = "No space left on device; no more curves there"
    assert capsys.readouterr().err == f"{tmp_path}/tensorboard: {reason}\n"
    assert written(tmp_path) == [record(0)]


def test_weights_and_biases_get_what_tensorboard_gets_and_the_same_run_again(tmp_path, monkeypatch):
    started, points = [], []
    run = SimpleNamespace(log=points.append, finish=lambda: None, define_metric=lambda *_, **__: 0)
    module = ModuleType("wandb")
    module.init = lambda **options: started.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    for _ in range(2):
        told = run_log(tmp_path, [], log__wandb="true", log__every=4)
        told.state.progress = progress(4, loss=8.0, rate=0.4, seconds=2.0)
        told.step(0)
        told.state.history = [record(0)]
        told.epoch()
    assert points[0]["step/loss"] == 2.0 and points[0]["epoch"] == 0.4
    assert points[1]["test_acc1"] == 0.5 and points[1]["epoch"] == 1
    assert started[0]["id"] == started[1]["id"]
    assert started[0]["config"]["epochs"] == told.config.epochs


def test_weights_and_biases_that_cannot_be_reached_end_nothing(tmp_path, monkeypatch, capsys):
    def unreachable(**_):
        raise ConnectionError("no network. Try again")

    module = ModuleType("wandb")
    module.init = unreachable
    monkeypatch.setitem(sys.modules, "wandb", module)
    told = run_log(tmp_path, [], log__wandb="true")
    told.state.history = [record(0)]
    told.epoch()
    told.close()
    assert capsys.readouterr().err == "Weights & Biases: no network; no more curves there\n"
    assert written(tmp_path) == [record(0)]


def test_a_package_that_is_missing_is_named_before_anything_begins(monkeypatch):
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: None)
    config, _ = parse_train(DEMO, ["--log.wandb=true"])
    with pytest.raises(ConfigError, match=r"log\.wandb: .*pip install wandb"):
        check_packages(config.log)
    check_packages(parse_train(DEMO, [])[0].log)


@pytest.mark.parametrize(
    ("metric", "shown", "chosen_on"),
    [
        ("test_acc1", "test acc1", "the test set itself"),
        ("val_acc1", "test acc1", "held-out training samples"),
        ("ema_test_acc1", "EMA test acc1", "the test set itself"),
        ("ema_val_acc1", "EMA test acc1", "held-out training samples"),
    ],
)
def test_the_end_names_both_accuracies_for_what_they_are(
    tmp_path, capsys, metric, shown, chosen_on
):
    # whatever the best epoch was chosen by, what is reported of it was measured on the test set
    others = dict.fromkeys(("val_acc1", "ema_test_acc1", "ema_val_acc1", "test_acc1"), 11.0)
    name = "ema_test_acc1" if metric.startswith("ema") else "test_acc1"
    history = [record(0, **{**others, name: 90.0}), record(1, **{**others, name: 80.0})]
    run_log(tmp_path, history, metric).end()
    how = " (test.py --weights ema)" if metric.startswith("ema") else ""
    assert capsys.readouterr().out.splitlines() == [
        f"last epoch (1): {shown} 80.00 %, last.pth{how}",
        f"best epoch (0), chosen on {chosen_on}: {shown} 90.00 %, best.pth{how}",
    ]


# -------------------------------------------------------------------------------------- progress
