"""Progress on a terminal and elsewhere."""

import pytest

from qkformer import console
from qkformer.console import Progress
from qkformer.text import duration


@pytest.fixture
def clock(monkeypatch):
    """Seconds, to be moved by hand."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_no_terminal_gets_plain_lines_now_and_then(clock, capsys):
    with Progress(10, "epoch 3") as progress:
        for done in range(1, 11):
            clock[0] += 25
            progress.show(done, "loss 0.1" if done == 2 else None)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3: step 2/10, 3m20s left  loss 0.1",  # with a status at once
        "epoch 3: step 5/10, 2m05s left  loss 0.1",
        "epoch 3: step 8/10, 50s left  loss 0.1",
    ]


def test_the_time_left_counts_the_steps_of_this_sitting_only(clock, capsys):
    with Progress(100, "epoch 3", start=90) as progress:
        clock[0] += 80
        progress.show(92)
    assert capsys.readouterr().out.strip() == "epoch 3: step 92/100, 5m20s left"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_other_processes_say_nothing(monkeypatch, clock, capsys, terminal):
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: terminal)
    with Progress(10, "epoch 3", quiet=True) as progress:
        for done in range(1, 11):
            clock[0] += 100
            progress.show(done, "loss 0.1")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("start", [0, 7])
def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch, capsys, start):
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True)
    with Progress(10, "epoch 3", start=start) as progress:
        progress.show(10, "loss 0.1")
    out = capsys.readouterr().out
    assert "epoch 3" in out
    assert f" {start}/10" in out
    assert "\n" not in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (75, "1m15s"), (3600, "1h00m"), (90061, "25h01m")],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
