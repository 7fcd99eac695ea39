"""Progress on a terminal and elsewhere; metrics.jsonl; TensorBoard."""

import json

import pytest

from qkformer.training import log
from qkformer.training.log import Progress, RunLog, duration


def record(epoch):
    values = ("train_lr", "train_loss", "train_acc1", "test_loss", "test_acc1", "test_acc5")
    return {
        "epoch": epoch,
        **dict.fromkeys(values, 0.5),
        "images_per_second": 9.0,
        "n_parameters": 5,
        "seconds": 30.0,
    }


def written(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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


def test_tensorboard_has_every_metric_once_per_epoch(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = [record(0), record(1)]
    for _ in range(2):  # the second time, epoch 1 is done again
        run_log = RunLog(tmp_path, history[:1])
        run_log.epoch(history, epochs=3)
        run_log.tensorboard.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(record(0)) - {"epoch", "n_parameters"}
    assert [event.step for event in events.Scalars("test_acc1")] == [1]


def test_the_end_names_both_accuracies_for_what_they_are(tmp_path, capsys):
    history = [{**record(0), "test_acc1": 90.0}, {**record(1), "test_acc1": 80.0}]
    RunLog(tmp_path, history).end(history, best=0)
    last, best = capsys.readouterr().out.splitlines()
    assert "last epoch (1)" in last and "80.00 %" in last
    assert "best epoch (0), chosen on the test set" in best and "90.00 %" in best


def test_no_terminal_gets_plain_lines_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with Progress(10, "epoch 3") as progress:
        for done in range(1, 11):
            now[0] += 25
            progress.show(done, "loss 0.1")
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3: batch 3/10, 2m55s left  loss 0.1",
        "epoch 3: batch 6/10, 1m40s left  loss 0.1",
        "epoch 3: batch 9/10, 25s left  loss 0.1",
    ]


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch, capsys):
    monkeypatch.setattr(log.sys.stdout, "isatty", lambda: True)
    with Progress(10, "epoch 3") as progress:
        progress.show(10, "loss 0.1")
    out = capsys.readouterr().out
    assert "epoch 3" in out
    assert "\n" not in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (75, "1m15s"), (3600, "1h00m"), (90061, "25h01m")],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
