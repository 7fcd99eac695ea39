"""Running a study: variant after variant, seed after seed, each a run as train.py's."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from qkformer.studies.study import Study, Variant
from qkformer.text import did_you_mean
from qkformer.training.checkpointing import LAST
from qkformer.training.command_line import TestOptions, TrainOptions
from qkformer.training.config import Config, ConfigError, changed_keys
from qkformer.training.config_file import build, naming, read_config
from qkformer.training.distributed import StopRequest, announced
from qkformer.training.evaluate import run_test, tested_configs
from qkformer.training.metrics import TrainingError
from qkformer.training.model import check_loss, check_model
from qkformer.training.train import run_training

RETESTS = "retests"  # folder in a run's own


def run_study(
    study: Study,
    output: Path,
    *,
    seeds: int = 1,
    only: Sequence[str] = (),
    job: tuple[int, int] = (0, 1),
    device: str = "auto",
    stop: StopRequest | None = None,
) -> None:
    """Train and test what is not done yet; a run that was stopped goes on.

    Args:
        output: Folder of the study: a run is in VARIANT/seedN below it.
        seeds: Runs of every variant, with the base's seed and those behind it.
        only: Names of variants; all unless given.
        job: (i, n): of all runs the i-th of every n, as a job of an array has to.
        device: As train.py's.
        stop: Handles the signals.

    Raises:
        ConfigError, DataError, FileError: something given is wrong.
        TrainingError: training could not go on in some runs; the others were done first.
        Stopped: a signal asked for it; nothing is lost.
    """
    if (world := announced()).size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConfigError(
            "several processes per run need torchrun, which brings them together again run after "
            "run; under srun give every job one task, and runs of its own by --job"
        )
    todo = _jobs(study, seeds, only)[job[0] :: job[1]]
    for variant, config in {variant.name: (variant, config) for variant, config in todo}.values():
        _check(study, variant, config)
    output.mkdir(parents=True, exist_ok=True)
    study.save(output)
    failed, say = [], print if world.is_main else lambda _: None
    for number, (variant, config) in enumerate(todo, start=1):
        config = replace(config, log=replace(config.log, energy=True))
        folder = output / variant.name / f"seed{config.seed}"
        say(f"run {number} of {len(todo)}: {folder}, {variant.title}")
        try:
            if not is_finished(folder, config):
                run_training(config, TrainOptions(folder, device=device), stop)
            _retest(study, config, folder, device)
        except TrainingError as error:
            failed.append(str(folder))
            say(f"{folder} failed: {error}")
    if failed:
        raise TrainingError(f"{len(failed)} of {len(todo)} runs failed: {', '.join(failed)}")


def _jobs(study: Study, seeds: int, only: Sequence[str]) -> list[tuple[Variant, Config]]:
    """Seed after seed, so that a study that is not yet done has something of every variant."""
    names = [variant.name for variant in study.variants]
    for name in only:
        if name not in names:
            raise ConfigError(f"--only: there is no variant {name!r}{did_you_mean(name, names)}")
    chosen = [each for each in study.variants if not only or each.name in only]
    return [(variant, variant.config(seed)) for seed in range(seeds) for variant in chosen]


def _check(study: Study, variant: Variant, config: Config) -> None:
    """Refuse before the first run what would end the last one."""
    with naming(f"variant {variant.name}"):
        check_loss(config)
        for ssa in study.retests.ssa if study.retests else (None,):
            (tested,) = tested_configs(config, ssa)
            check_model(tested)


def is_finished(folder: Path, config: Config) -> bool:
    """Whether this very run is in the folder, with its last epoch and its energy."""
    metrics, written, energy = (
        folder / name for name in ("metrics.jsonl", "config.yml", "energy.json")
    )
    if not (metrics.exists() and written.exists() and energy.exists()):
        return False
    before = build(read_config(written))
    return len(metrics.read_text().splitlines()) == config.all_epochs and not changed_keys(
        asdict(before), asdict(config)
    )


def _retest(study: Study, config: Config, folder: Path, device: str) -> None:
    if study.retests is None:
        return
    done = {(each["ssa"], each["batch_size"]) for each in retested(folder)}
    for ssa, size in study.retests.all():
        if (ssa, size) not in done:
            (tested,) = tested_configs(config, ssa)
            tested = replace(tested, data=replace(config.data, test_batch_size=size))
            run_test(tested, TestOptions(folder / LAST, folder / RETESTS, device=device, ssa=ssa))


def retested(folder: Path) -> Iterator[dict]:
    """What test.py's measurement said of a run, test by test."""
    file = folder / RETESTS / "results.jsonl"
    for line in file.read_text().splitlines() if file.exists() else ():
        yield json.loads(line)
