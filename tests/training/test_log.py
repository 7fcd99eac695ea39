"""What is said of epochs: lines, metrics.jsonl, TensorBoard."""

import json

import pytest

from qkformer.training.log import RunLog


def record(epoch, **changes):
    values = ("train_lr", "train_loss", "train_acc1", "test_loss", "test_acc1", "test_acc5")
    return {
        "epoch": epoch,
        **dict.fromkeys(values, 0.5),
        "gradient_norm": 1.5,
        "skipped_steps": 0,
        "damaged_samples": 0,
        "images_per_second": 9.0,
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

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


def test_every_epoch_has_one_line_also_where_a_run_went_back(tmp_path):
    history = [record(0), record(1)]
    run_log = RunLog(tmp_path, history[:1])
    run_log.epoch(history, epochs=3)
    assert written(tmp_path) == history
    # the run is killed before its checkpoint, and goes on from epoch 0
    run_log = RunLog(tmp_path, history[:1])
    assert written(tmp_path) == history[:1]
    run_log.epoch(history, epochs=3)
    assert written(tmp_path) == history


def test_a_line_is_json_with_everything_that_was_measured(tmp_path):
    history = [record(0, gradient_norm=None, ema_test_acc1=7.5)]
    RunLog(tmp_path, []).epoch(history, epochs=3)
    assert written(tmp_path) == history
    assert '"gradient_norm": null' in (tmp_path / "metrics.jsonl").read_text()


def test_tensorboard_has_every_metric_once_per_epoch(tmp_path):
    history = [record(0), record(1, train_loss=0.25)]
    for _ in range(2):  # the second time, epoch 1 is done again
        run_log = RunLog(tmp_path, history[:1])
        run_log.epoch(history, epochs=3)
        run_log.tensorboard.close()
    shown = scalars(tmp_path)
    rates = {"firing_rate/stages.0", "firing_rate/head_neuron"}
    assert shown.keys() == set(record(0)) - {"epoch", "n_parameters", "firing_rate"} | rates
    assert all(list(values) == [1] for values in shown.values())
    assert shown["train_loss"] == {1: 0.25}
    assert [shown[name][1] for name in sorted(rates)] == [0.125, 0.25]


def test_tensorboard_leaves_out_what_an_epoch_without_an_update_cannot_have(tmp_path):
    history = [record(0, gradient_norm=None), record(1)]
    run_log = RunLog(tmp_path, [])
    run_log.epoch(history[:1], epochs=2)
    run_log.epoch(history, epochs=2)
    run_log.tensorboard.close()
    shown = scalars(tmp_path)
    assert shown["gradient_norm"] == {1: 1.5}
    assert list(shown["train_loss"]) == [0, 1]


def test_the_line_of_an_epoch_says_how_far_the_run_has_come(tmp_path, capsys):
    history = [record(0), record(1, train_lr=1.25e-3, test_acc1=81.15, seconds=50.0)]
    RunLog(tmp_path, history[:1]).epoch(history, epochs=410)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("epoch 1 [2/410]")
    for part in ("lr 1.25e-03", "acc1 81.15 %", "acc5 0.50 %", "9 images/s", "5h40m left"):
        assert part in line


def test_samples_that_were_left_out_are_reported_epoch_by_epoch(tmp_path, capsys):
    run_log = RunLog(tmp_path, [])
    run_log.epoch([record(0)], epochs=2)
    assert "could not be read" not in capsys.readouterr().out
    run_log.epoch([record(0), record(1, damaged_samples=3)], epochs=2)
    _, line = capsys.readouterr().out.splitlines()
    assert line == "3 samples could not be read and were left out"


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
    RunLog(tmp_path, history, metric).end(history, best=0)
    how = " (test.py --weights ema)" if metric.startswith("ema") else ""
    assert capsys.readouterr().out.splitlines() == [
        f"last epoch (1): {shown} 80.00 %, last.pth{how}",
        f"best epoch (0), chosen on {chosen_on}: {shown} 90.00 %, best.pth{how}",
    ]


# -------------------------------------------------------------------------------------- progress
