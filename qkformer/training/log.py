"""What a run says of its epochs: on the screen, in TensorBoard, in metrics.jsonl."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from qkformer.files import write_text
from qkformer.text import duration


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
        how = " (test.py --weights ema)" if name.startswith("ema_") else ""
        last, best_one = history[-1], history[best]
        print(f"last epoch ({last['epoch']}): {_words(name)} {last[name]:.2f} %, last.pth{how}")
        print(
            f"best epoch ({best}), chosen on {chosen_on}: "
            f"{_words(name)} {best_one[name]:.2f} %, best.pth{how}",
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
