"""What a run says while it goes on: on the screen, in TensorBoard, in metrics.jsonl."""

import json
import sys
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from qkformer.checkpoint.io import write_text

SECONDS_BETWEEN_LINES = 60


class Progress:
    """A bar on a terminal; elsewhere, as in a log file, a plain line every minute.

    Args:
        total: Number of steps.
        label: What is going on.
        start: How many of them were done before.
        quiet: Say nothing, as all processes but one.

    Leaving its `with` block removes the bar, so that what follows starts on a line of its own.
    """

    def __init__(self, total: int, label: str, *, start: int = 0, quiet: bool = False) -> None:
        self.total, self.label, self.start, self.quiet = total, label, start, quiet
        self.start_time = self.last_line = time.monotonic()
        self.bar = None
        if sys.stdout.isatty() and not quiet:
            self.bar = tqdm(total=total, initial=start, desc=label, leave=False, file=sys.stdout)

    def show(self, done: int, status: str = "") -> None:
        """Say that `done` steps are behind us."""
        if self.bar is not None:
            self.bar.set_postfix_str(status, refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.quiet and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            per_step = (self.last_line - self.start_time) / (done - self.start)
            seconds = per_step * (self.total - done)
            done_of = f"step {done}/{self.total}, {duration(seconds)} left"
            print(f"{self.label}: {done_of}  {status}", flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


class RunLog:
    """Where finished epochs are written down: metrics.jsonl, tensorboard/ and the screen.

    Args:
        folder: Folder of the run.
        history: Metrics of the epochs finished earlier, where a run goes on.
        metric: Name of the accuracy by which the best epoch is chosen.
    """

    def __init__(self, folder: Path, history: list[dict], metric: str = "test_acc1") -> None:
        self.folder, self.metric = folder, metric
        # what TensorBoard was told of an epoch that did not reach the checkpoint is withdrawn
        self.tensorboard = SummaryWriter(folder / "tensorboard", purge_step=len(history))
        if history:
            self._write_metrics(history)

    def epoch(self, history: list[dict], epochs: int) -> None:
        """Write down the last epoch of `history`, one of `epochs` in all."""
        self._write_metrics(history)
        record = history[-1]
        for name, value in _scalars(record).items():
            self.tensorboard.add_scalar(name, value, record["epoch"])
        self.tensorboard.flush()
        left = (epochs - len(history)) * record["seconds"]
        print(
            f"epoch {record['epoch']} [{len(history)}/{epochs}]  "
            f"lr {record['train_lr']:.2e}  "
            f"train loss {record['train_loss']:.4f} acc1 {record['train_acc1']:.2f} %  "
            f"test loss {record['test_loss']:.4f} acc1 {record['test_acc1']:.2f} % "
            f"acc5 {record['test_acc5']:.2f} %  "
            f"{record['images_per_second']:.0f} images/s  {duration(left)} left",
            flush=True,
        )
        if record["damaged_samples"]:
            print(f"{record['damaged_samples']} samples could not be read and were left out")

    def end(self, history: list[dict], best: int) -> None:
        """Report the two accuracies of a run, each by its name."""
        self.tensorboard.close()
        # the averaged weights' accuracy where they are what was chosen by
        name = "ema_test_acc1" if self.metric.startswith("ema_") else "test_acc1"
        held_out = "val" in self.metric
        chosen_on = "held-out training samples" if held_out else "the test set itself"
        last, best_one = history[-1], history[best]
        print(f"last epoch ({last['epoch']}): {_words(name)} {last[name]:.2f} %, last.pth")
        print(
            f"best epoch ({best}), chosen on {chosen_on}: "
            f"{_words(name)} {best_one[name]:.2f} %, best.pth",
            flush=True,
        )

    def _write_metrics(self, history: list[dict]) -> None:
        # the whole file every time: never half a line, never an epoch twice after a resume
        write_text(
            self.folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history)
        )


def _scalars(record: dict) -> dict[str, float]:
    """What TensorBoard shows of an epoch: numbers, those of stages by name."""
    scalars = {}
    for name, value in record.items():
        if isinstance(value, dict):
            scalars |= {f"{name}/{part}": inner for part, inner in value.items()}
        elif name not in ("epoch", "n_parameters") and value is not None:
            scalars[name] = value
    return scalars


def _words(name: str) -> str:
    return name.replace("_", " ").replace("ema", "EMA")


def duration(seconds: float) -> str:
    """75 -> "1m15s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
