"""What a run leaves in its folder and when, and how it goes on from there."""

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qkformer.checkpoint.io import CheckpointError, read_checkpoint, save_checkpoint
from qkformer.data.inputs import Inputs
from qkformer.files import FileError, Lock
from qkformer.text import first_sentence, some_of
from qkformer.training.config import Config, ConfigError, changed_keys, flat
from qkformer.training.distributed import Stopped, StopRequest, World
from qkformer.training.environment import make_folder, random_state, set_random_state
from qkformer.training.learner import Learner
from qkformer.training.metrics import EpochMetrics

LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best.pth"
NEXT = ".next.pth"  # whole, and about to become last.pth
LONG_STEP = 1.0  # seconds, of which waiting for the other processes is no part worth avoiding
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
    progress: EpochMetrics | None = None

    def add(self, record: dict[str, Any]) -> None:
        """Take in the metrics of the epoch just finished."""
        self.history.append(record)
        self.progress = None
        # a run that goes on may choose by another accuracy, which the epochs before do not have
        best = -1.0 if self.best is None else self.history[self.best].get(self.metric, -1.0)
        if record[self.metric] > best:
            self.best = record["epoch"]


# ------------------------------------------------------------------------------------ saving


class Checkpoints:
    """Saves a run: at the end of every epoch, every so many minutes, and when it is asked to stop.

    Args:
        folder: Folder of the run.
        state: How far the run has come.
        learner: What is saved.
        config: The run's configuration.
        inputs: What goes with the weights of the data: in place of these for new samples.
        world: The processes; all take part in saving, the main one writes.
        stop: Signals that came.
    """

    def __init__(
        self,
        folder: Path,
        state: RunState,
        learner: Learner,
        config: Config,
        inputs: Inputs,
        world: World,
        stop: StopRequest,
    ) -> None:
        self.folder, self.state, self.learner, self.config = folder, state, learner, config
        self.inputs, self.world, self.stop = inputs, world, stop
        self.last_save = time.monotonic()
        self._asked = self.last_save
        self._answer = lambda: [0, 1]

    def due(self) -> bool:
        """Whether any process was asked to stop, or the time since the last checkpoint is over.

        Every process must ask equally often, and all get one answer. Where there are several and
        steps are short, it is the answer to the call before this one, so that nobody waits.
        """
        decision, at_once = self._answer()
        now, seconds = time.monotonic(), 60 * self.config.checkpoint.minutes
        late = self.world.is_main and not decision and 0 < seconds < now - self.last_save
        alone_or_long = self.world.size == 1 or now - self._asked > LONG_STEP
        # 0 go on, 1 save, 2 save and stop
        wanted = 2 if self.stop.received else int(late)
        self._asked, self._answer = now, self.world.largest(wanted, int(alone_or_long))
        if at_once:
            newer, at_once = self._answer()
            decision, self._answer = max(decision, newer), lambda: [0, at_once]
        self.decision = decision
        return decision > 0

    def save_within(self) -> None:
        """Save in the middle of an epoch.

        Raises:
            Stopped: that was what the run was asked for.
        """
        self.save()
        if self.decision == 2:
            signals = [name for name in self.world.gather(self.stop.received) if name]
            raise Stopped(
                f"stopped by {signals[0]} in epoch {len(self.state.history)} after "
                f"{self.state.progress.done} samples, everything is saved: the same command goes on"
            )

    def save(self) -> None:
        """Write last.pth; the one before becomes previous.pth.

        Raises:
            FileError: it cannot be written; the files are as they were before.
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
        save_checkpoint(content, self.folder / NEXT)
        finish_save(self.folder)
        every = self.config.checkpoint.every
        if every and not state.progress and len(state.history) % every == 0:
            save_checkpoint(content, self.folder / f"epoch-{len(state.history) - 1:04}.pth")

    def _facts(self) -> dict[str, Any]:
        """What every checkpoint says of its weights."""
        finished = self.state.history[-1] if not self.state.progress else None
        return {
            "epoch": finished["epoch"] if finished else len(self.state.history),
            "acc1": finished.get(self.state.metric) if finished else None,
            "config": asdict(self.config),
            "inputs": asdict(self.inputs),
        }


def finish_save(folder: Path) -> None:
    """Let the files of a run move up; also those of one that was killed in the middle of it.

    Raises:
        FileError: they cannot move.
    """
    try:
        if (folder / NEXT).exists():
            if (folder / LAST).exists():
                os.replace(folder / LAST, folder / PREVIOUS)
            os.replace(folder / NEXT, folder / LAST)
    except OSError as error:
        raise FileError(f"cannot write {folder / LAST}: {first_sentence(error)}") from error


# ---------------------------------------------------------------------------------- going on


def take_folder(folder: Path, lock: Lock) -> None:
    """Make it the folder of this run, alone.

    Raises:
        ConfigError: it cannot be written to, or another run has it.
    """
    make_folder(folder)
    try:
        is_ours = lock.take()
    except OSError as error:  # as where the file is another user's
        raise ConfigError(f"--output {folder}: {lock.path.name}: {error.strerror}") from error
    if not is_ours:
        raise ConfigError(
            f"--output {folder}: another run is writing there; wait for its end, or choose another "
            "folder"
        )
    finish_save(folder)


@dataclass(frozen=True)
class Found:
    """A checkpoint from which training goes on.

    Attributes:
        path: The file.
        changed: Keys whose values the configuration changes from here on, with both values.
    """

    path: Path
    changed: list[str]


def find_checkpoint(resume: str, output: Path, config: Config, samples: int) -> Found | None:
    """The checkpoint from which to go on; None to start anew.

    Args:
        resume: auto (the newest intact one in the folder), none, or a path.
        output: Folder of the run.
        config: What the run shall be.
        samples: Per step, of all processes.

    Raises:
        ConfigError: the folder holds a run that this one would overwrite.
        CheckpointError: no checkpoint can be read, or training cannot go on from it.
    """
    own = [output / LAST, output / PREVIOUS, *sorted(output.glob("epoch-*.pth"), reverse=True)]
    own = [path for path in own if path.exists()]
    given = None if resume in ("auto", "none") else Path(resume)
    if given is not None and not given.exists():
        raise ConfigError(f"--resume {given}: no such file; expected auto, none or a checkpoint")
    goes_on = resume == "auto" and own
    if not goes_on and not any(given and given.samefile(path) for path in own):
        _check_holds_no_run(output)
    if not goes_on and given is None:
        return None
    path, content = _first_intact(own if goes_on else [given])
    changed = changed_keys(content["config"], asdict(config))
    before = content.get("samples_per_step", samples)
    if samples != before:  # it is the number of processes that has changed, or made up for a key
        changed.append(f"samples per step: {before} -> {samples}")
    before, now = (flat(each).get("optimizer.name") for each in (content["config"], asdict(config)))
    if before not in (None, now) and not goes_on:
        raise ConfigError(
            f"optimizer.name: {path} holds what {before} remembers, {now} cannot go on from that; "
            "--model.weights takes the weights alone"
        )
    if changed and goes_on:
        raise ConfigError(
            f"{output} holds a run of another configuration ({some_of(changed)}): choose another "
            f"--output, or go on with the changed one by --resume {path}"
        )
    return Found(path, changed)


def restore(found: Found, learner: Learner, output: Path, metric: str, world: World) -> RunState:
    """Put the learner and the random numbers where the checkpoint says they were.

    Raises:
        CheckpointError: the checkpoint is of another architecture.
    """
    content = read_checkpoint(found.path, mmap=True)
    try:
        learner.load_state_dict(content)
    except CheckpointError as error:
        raise CheckpointError(f"{found.path}: {error}") from error
    if world.rank < len(content["random"]):  # a run may go on with more processes than it had
        set_random_state(content["random"][world.rank], learner.device)
    progress = EpochMetrics.share(content["progress"], world) if content["progress"] else None
    state = RunState(metric, content["history"], content["best"], progress)
    # where best.pth is not what the file knows as the best, as in another folder, the best weights
    # at hand are those the run starts with, or inside an epoch none
    best = output / BEST
    if not best.exists() or read_checkpoint(best, mmap=True).get("epoch") != state.best:
        state.best = state.history[-1]["epoch"] if state.history and not progress else None
    return state


def _first_intact(paths: Iterable[Path]) -> tuple[Path, dict[str, Any]]:
    damaged = []
    for path in paths:
        try:
            content = read_checkpoint(path, mmap=True)
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
    raise CheckpointError("; ".join(map(str, damaged)))


def _check_holds_no_run(output: Path) -> None:
    for name in (LAST, PREVIOUS, BEST, "metrics.jsonl"):
        if (output / name).exists():
            hint = ", or go on with --resume auto" if name == LAST else ""
            raise ConfigError(
                f"{output} holds the {name} of another run: choose another --output{hint}"
            )
