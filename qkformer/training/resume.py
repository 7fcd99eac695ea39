"""How a run goes on from what it left in its folder."""

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qkformer.checkpoint.io import CheckpointError, read_checkpoint
from qkformer.text import some_of
from qkformer.training.config import Config, ConfigError, changed_keys
from qkformer.training.distributed import World
from qkformer.training.learner import Learner
from qkformer.training.progress import EpochProgress
from qkformer.training.randomness import set_random_state
from qkformer.training.state import BEST, LAST, PREVIOUS, RunState

# in every file from which a run can go on
RESUMABLE = ("model", "optimizer", "scaler", "random", "history", "best", "progress", "config")


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
    if not goes_on and not any(_same_file(given, path) for path in own):
        _check_holds_no_run(output)
    if not goes_on and given is None:
        return None
    path, content = _first_intact(own if goes_on else [given])
    changed = changed_keys(content["config"], asdict(config))
    before = content.get("samples_per_step", samples)
    if samples != before:  # it is the number of processes that has changed, or made up for a key
        changed.append(f"samples per step: {before} -> {samples}")
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
    content = read_checkpoint(found.path)
    try:
        learner.load_state_dict(content)
    except CheckpointError as error:
        raise CheckpointError(f"{found.path}: {error}") from error
    if world.rank < len(content["random"]):  # a run may go on with more processes than it had
        set_random_state(content["random"][world.rank], learner.device)
    progress = EpochProgress.share(content["progress"], world) if content["progress"] else None
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
    raise CheckpointError("; ".join(map(str, damaged)))


def _check_holds_no_run(output: Path) -> None:
    for name in (LAST, PREVIOUS, BEST, "metrics.jsonl"):
        if (output / name).exists():
            hint = ", or go on with --resume auto" if name == LAST else ""
            raise ConfigError(
                f"{output} holds the {name} of another run: choose another --output{hint}"
            )


def _same_file(one: Path | None, other: Path) -> bool:
    return one is not None and one.exists() and other.exists() and one.samefile(other)
