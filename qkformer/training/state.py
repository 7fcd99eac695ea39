"""What a run leaves in its folder, and when."""

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qkformer.checkpoint.io import save_checkpoint
from qkformer.training.config import Config
from qkformer.training.distributed import World
from qkformer.training.learner import Learner
from qkformer.training.progress import EpochProgress
from qkformer.training.randomness import random_state
from qkformer.training.signals import Stopped, StopRequest

LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best.pth"


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
        randoms = self.world.gather(random_state(self.learner.device))
        progress = self.state.progress and self.world.gather(asdict(self.state.progress))
        self.world.first(lambda: self._write_last(randoms, progress))
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
            save_checkpoint(self._facts() | self.learner.weights(), self.folder / BEST)

    def _write_last(self, randoms: list[dict], progress: list[dict] | None) -> None:
        state = self.state
        content = (
            self._facts()
            | self.learner.state_dict()
            | {
                "random": randoms,
                "samples_per_step": self.config.samples_per_step(self.world.size),
                "history": state.history,
                "best": state.best,
                "progress": progress,
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

    def _facts(self) -> dict[str, Any]:
        """What every checkpoint says of its weights."""
        finished = self.state.history[-1] if not self.state.progress else None
        return {
            "epoch": finished["epoch"] if finished else len(self.state.history),
            "acc1": finished[self.state.metric] if finished else None,
            "config": asdict(self.config),
        }
