"""What a run leaves in its folder, and how it goes on from there."""

import os
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qkformer.checkpoint.io import CheckpointError, read_checkpoint, save_checkpoint
from qkformer.training.config import Config, ConfigError, differences
from qkformer.training.distributed import World
from qkformer.training.learner import Learner
from qkformer.training.progress import EpochProgress
from qkformer.training.signals import Stopped, StopRequest

LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best.pth"
# in every file from which a run can go on
RESUMABLE = ("model", "optimizer", "scaler", "random", "history", "best", "progress", "config")


@dataclass
class RunState:
    """How far a run has come.

    Attributes:
        metric: Name of the accuracy by which the best epoch is chosen.
        history: Metrics of every finished epoch.
        best: Index of the epoch with the highest accuracy, None before the first.
        progress: Of the epoch that is not finished; None between epochs.
    """

    metric: str = "test_acc1"
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None
    progress: EpochProgress | None = None

    def add(self, record: dict[str, Any]) -> None:
        """Take in the metrics of the epoch just finished."""
        self.history.append(record)
        self.progress = None
        if self.best is None or record[self.metric] > self.history[self.best][self.metric]:
            self.best = record["epoch"]


class Keeper:
    """Saves a run: at the end of every epoch, every so many minutes, and when it is asked to stop.

    Args:
        folder: Folder of the run.
        state: How far the run has come.
        learner: What is saved.
        config: The run's configuration.
        world: The processes; all take part in saving, the main one writes.
        stop: Signals that came.
    """

    def __init__(
        self,
        folder: Path,
        state: RunState,
        learner: Learner,
        config: Config,
        world: World,
        stop: StopRequest,
    ) -> None:
        self.folder, self.state, self.learner, self.config = folder, state, learner, config
        self.world, self.stop = world, stop
        self.last_save = time.monotonic()

    def due(self) -> bool:
        """Whether any process was asked to stop, or the time since the last checkpoint is over."""
        seconds = 60 * self.config.checkpoint.minutes
        late = self.world.is_main and 0 < seconds < time.monotonic() - self.last_save
        # in all processes at once: 0 go on, 1 save, 2 save and stop
        self.decision = self.world.largest(2 if self.stop.received else int(late))
        return self.decision > 0

    def take(self, progress: EpochProgress) -> None:
        """Save in the middle of an epoch.

        Raises:
            Stopped: that was what the run was asked for.
        """
        self.state.progress = progress
        self.save()
        if self.decision == 2:
            signals = [name for name in self.world.gather(self.stop.received) if name]
            raise Stopped(
                f"stopped by {signals[0]} in epoch {len(self.state.history)} after {progress.done} "
                "samples, everything is saved: the same command goes on"
            )

    def save(self) -> None:
        """Write last.pth; the one before becomes previous.pth.

        Raises:
            CheckpointError: it cannot be written; the files are as they were before.
        """
        random_states = self.world.gather(random_state(self.learner.device))
        self.world.first(lambda: self._write_last(random_states))
        self.last_save = time.monotonic()

    def save_epoch(self) -> None:
        """Save at the end of an epoch, with the copies that are due."""
        # last.pth first: a run killed between the two writes best.pth when it goes on
        self.save()
        self.world.first(self.write_best)

    def write_best(self) -> None:
        """Write best.pth where the last epoch, whose weights these are, is the best so far."""
        history = self.state.history
        if not self.state.progress and history and history[-1]["epoch"] == self.state.best:
            save_checkpoint(self._weights(), self.folder / BEST)

    def _write_last(self, random_states: list[dict]) -> None:
        state = self.state
        content = (
            self._weights()
            | self.learner.state_dict()
            | {
                "random": random_states,
                "history": state.history,
                "best": state.best,
                "progress": asdict(state.progress) if state.progress else None,
            }
        )
        # A disk may run full: the new file has to be there before the old ones move.
        new, last = self.folder / ".next.pth", self.folder / LAST
        save_checkpoint(content, new)
        if last.exists():
            os.replace(last, self.folder / PREVIOUS)
        os.replace(new, last)
        every = self.config.checkpoint.every
        if every and not state.progress and len(state.history) % every == 0:
            save_checkpoint(content, self.folder / f"epoch-{len(state.history) - 1:04}.pth")

    def _weights(self) -> dict[str, Any]:
        finished = self.state.history[-1] if not self.state.progress else None
        return self.learner.weights() | {
            "epoch": finished["epoch"] if finished else len(self.state.history),
            "acc1": finished[self.state.metric] if finished else None,
            "config": asdict(self.config),
        }


@dataclass(frozen=True)
class Found:
    """A checkpoint from which training goes on.

    Attributes:
        path: The file.
        changed: Keys whose values the configuration changes from here on, with both values.
    """

    path: Path
    changed: list[str]


def find_checkpoint(resume: str, output: Path, config: Config) -> Found | None:
    """The checkpoint from which to go on; None to start anew.

    Args:
        resume: auto (the newest intact one in the folder), none, or a path.
        output: Folder of the run.
        config: What the run shall be.

    Raises:
        ConfigError: the folder holds a run that this one would overwrite.
        CheckpointError: no checkpoint can be read, or training cannot go on from it.
    """
    own = [output / LAST, output / PREVIOUS, *sorted(output.glob("epoch-*.pth"), reverse=True)]
    own = [path for path in own if path.exists()]
    given = None if resume in ("auto", "none") else Path(resume)
    goes_on = resume == "auto" and own
    if not goes_on and not any(_same_file(given, path) for path in own):
        _check_holds_no_run(output)
    if not goes_on and given is None:
        return None
    path, content = _first_intact(own if goes_on else [given])
    changed = differences(content["config"], asdict(config))
    if changed and goes_on:
        some = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if changed[3:] else "")
        raise ConfigError(
            f"{output} holds a run of another configuration ({some}): choose another --output, "
            f"or go on with the changed one by --resume {path}"
        )
    return Found(path, changed)


def restore(found: Found, learner: Learner, output: Path, metric: str, world: World) -> RunState:
    """Put the learner and the random numbers where the checkpoint says they were.

    Raises:
        CheckpointError: the checkpoint is of another architecture.
    """
    content = read_checkpoint(found.path)
    try:
        learner.load_state_dict(content)
    except CheckpointError as error:
        raise CheckpointError(f"{found.path}: {error}") from error
    if world.rank < len(content["random"]):  # a run may go on with more processes than it had
        set_random_state(content["random"][world.rank], learner.device)
    progress = EpochProgress(**content["progress"]) if content["progress"] else None
    state = RunState(metric, content["history"], content["best"], progress)
    # where a run goes on in another folder, the best weights at hand are those it starts with
    is_own = found.path.resolve().parent == output.resolve() and (output / BEST).exists()
    if not is_own and state.history:
        state.best = state.history[-1]["epoch"]
    return state


def _first_intact(paths: Iterable[Path]) -> tuple[Path, dict[str, Any]]:
    damaged = []
    for path in paths:
        try:
            content = read_checkpoint(path)
        except CheckpointError as error:
            damaged.append(error)
            continue
        missing = [key for key in RESUMABLE if key not in content]
        if missing:
            raise CheckpointError(
                f"{path}: no {', '.join(missing)} in it: training goes on from a last.pth only"
            )
        for error in damaged:
            print(f"{error}; the checkpoint before it takes its place", file=sys.stderr)
        return path, content
    raise damaged[0]


def _check_holds_no_run(output: Path) -> None:
    for name in (LAST, PREVIOUS, BEST, "metrics.jsonl"):
        if (output / name).exists():
            hint = ", or go on with --resume auto" if name == LAST else ""
            raise ConfigError(
                f"{output} holds the {name} of another run: choose another --output{hint}"
            )


def _same_file(one: Path | None, other: Path) -> bool:
    return one is not None and one.exists() and other.exists() and one.samefile(other)


def seed_everything(seed: int) -> None:
    """Seed the global random numbers of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The global random numbers' state, in plain values and tensors that load safely."""
    _, words, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (words.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Undo what happened to the global random numbers since `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(("MT19937", *state["numpy"]))
    torch.set_rng_state(state["torch"])
    # a run may go on on another device, whose numbers then keep the run's seed
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
