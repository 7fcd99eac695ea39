"""What a run leaves in its folder, and how it goes on from there."""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from qkformer.checkpoint.io import CheckpointError, read_checkpoint, save_checkpoint
from qkformer.training.config import Config, ConfigError, differences

RESUMABLE = ("model", "optimizer", "random", "history", "best", "config")  # in every last.pth


@dataclass
class RunState:
    """How far a run has come.

    Attributes:
        history: Metrics of every finished epoch.
        best: Index of the epoch with the highest test accuracy, None before the first.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None

    def add(self, record: dict[str, Any]) -> None:
        """Take in the metrics of the epoch just finished."""
        self.history.append(record)
        if self.best is None or record["test_acc1"] > self.history[self.best]["test_acc1"]:
            self.best = record["epoch"]

    def save(self, folder: Path, model: nn.Module, optimizer: Optimizer, config: Config) -> None:
        """Write last.pth and, where the last epoch is the best one so far, best.pth."""
        last = {
            "optimizer": optimizer.state_dict(),
            "random": random_state(),
            "history": self.history,
            "best": self.best,
        }
        # last.pth first: a run killed between the two writes best.pth when it goes on
        save_checkpoint(self._weights(model, config) | last, folder / "last.pth")
        self.save_best(folder, model, config)

    def save_best(self, folder: Path, model: nn.Module, config: Config) -> None:
        """Write best.pth where the last epoch, which `model` comes from, is the best one so far."""
        if self.history[-1]["epoch"] == self.best:
            save_checkpoint(self._weights(model, config), folder / "best.pth")

    def _weights(self, model: nn.Module, config: Config) -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "epoch": self.history[-1]["epoch"],
            "acc1": self.history[-1]["test_acc1"],
            "config": asdict(config),
        }


@dataclass(frozen=True)
class Found:
    """A last.pth from which training goes on.

    Attributes:
        path: The file.
        content: What is in it.
        changed: Keys whose values the configuration changes from here on, with both values.
    """

    path: Path
    content: dict[str, Any]
    changed: list[str]


def find_checkpoint(resume: str, output: Path, config: Config) -> Found | None:
    """The checkpoint from which to go on; None to start anew.

    Args:
        resume: auto, none, or a path.
        output: Folder of the run.
        config: What the run shall be.

    Raises:
        ConfigError: the folder holds a run that this one would overwrite.
        CheckpointError: the checkpoint cannot be read, or training cannot go on from it.
    """
    own = output / "last.pth"
    source = None if resume in ("auto", "none") else Path(resume)
    if resume == "auto" and own.exists():
        source = own
    if source is None or not _same_file(source, own):
        _check_holds_no_run(output)
    if source is None:
        return None
    content = read_checkpoint(source)
    missing = [key for key in RESUMABLE if key not in content]
    if missing:
        raise CheckpointError(
            f"{source}: no {', '.join(missing)} in it: training goes on from a last.pth only"
        )
    changed = differences(content["config"], asdict(config))
    if changed and resume == "auto":
        some = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if changed[3:] else "")
        raise ConfigError(
            f"{output} holds a run of another configuration ({some}): choose another --output, "
            f"or go on with the changed one by --resume {source}"
        )
    return Found(source, content, changed)


def restore(found: Found, model: nn.Module, optimizer: Optimizer, output: Path) -> RunState:
    """Put model, optimizer and random numbers where the checkpoint says they were.

    Raises:
        CheckpointError: the checkpoint is of another architecture.
    """
    content = found.content
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{found.path}: does not fit the configured model") from error
    set_random_state(content["random"])
    history = content["history"]
    # where a run goes on in another folder, the best weights at hand are those it starts with
    has_best = _same_file(found.path, output / "last.pth") and (output / "best.pth").exists()
    return RunState(history, content["best"] if has_best else history[-1]["epoch"])


def _check_holds_no_run(output: Path) -> None:
    for name in ("last.pth", "best.pth", "metrics.jsonl"):
        if (output / name).exists():
            hint = ", or go on with --resume auto" if name == "last.pth" else ""
            raise ConfigError(
                f"{output} holds the {name} of another run: choose another --output{hint}"
            )


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def seed_everything(seed: int) -> None:
    """Seed the global random numbers of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The global random numbers' state, in plain values and tensors that load safely."""
    _, words, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (words.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Undo what happened to the global random numbers since `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(("MT19937", *state["numpy"]))
    torch.set_rng_state(state["torch"])
    # a run may go on with another number of GPUs; those it knows nothing of keep their seed
    for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, index)
