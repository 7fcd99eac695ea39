"""What a run says of itself: on the screen, in files, as curves."""

import importlib.util
import json
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from qkformer.data.loaders import TrainingBatches
from qkformer.data.registry import Data
from qkformer.data.workers import advice
from qkformer.files import write_text
from qkformer.text import duration, first_sentence
from qkformer.training.checkpointing import RunState
from qkformer.training.config import Config, ConfigError, LogConfig
from qkformer.training.distributed import World
from qkformer.training.environment import device_name, peak_memory, precision_remarks
from qkformer.training.graph import graph_remarks
from qkformer.training.learner import Learner
from qkformer.training.metrics import EpochMetrics, TrainingError, not_finite
from qkformer.training.model import count_parameters


class RunLog:
    """Where a run writes down how it goes, within epochs and behind them.

    Args:
        folder: Folder of the run.
        state: How far the run has come.
        config: The run's configuration.
        batches: Sampler of the training batches.
    """

    def __init__(
        self, folder: Path, state: RunState, config: Config, batches: TrainingBatches
    ) -> None:
        self.folder, self.state, self.config = folder, state, config
        self.samples_per_epoch = batches.size
        self._last_told = replace(state.progress) if state.progress else EpochMetrics()
        self._looks, self._advised = 0, False
        done = len(state.history)
        # what curves were told of an epoch that did not reach the checkpoint is withdrawn
        self.epochs = TensorBoard(folder / "tensorboard", done)
        self.steps = TensorBoard(
            folder / "tensorboard/steps", done * self.samples_per_epoch + self._last_told.done
        )
        self.wandb = WeightsAndBiases(folder, config) if config.log.wandb else None
        if state.history:
            self._write_metrics()

    def due(self, step: int) -> bool:
        """Whether to tell of this step of an epoch."""
        return self.config.log.every > 0 and step % self.config.log.every == 0

    def step(self, epoch: int) -> str:
        """Write down what happened since the last call; a line of it."""
        progress = self.state.progress
        if progress.steps <= self._last_told.steps:  # of the epoch before
            self._last_told = EpochMetrics()
        values = progress.since(self._last_told)
        self._last_told = replace(progress)
        # in samples, which another batch size does not change
        self.steps.write(values, epoch * self.samples_per_epoch + progress.done)
        if self.wandb:
            values_of_step = {f"step/{key}": value for key, value in values.items()}
            self.wandb.write(values_of_step, epoch + progress.done / self.samples_per_epoch)
        self._advise(values)
        return (
            f"loss {values['loss']:.3f}  lr {values['lr']:.2e}  "
            f"{values['images_per_second']:.0f} images/s  "
            f"{100 * values['data_wait']:.0f} % waiting for data"
        )

    def _advise(self, values: dict[str, float]) -> None:
        """Say once what data are waited for; the first look has the loading processes start."""
        self._looks += 1
        if self._looks > 1 and not self._advised:
            line = advice(self.config.data, values["images_per_second"], values["data_wait"])
            if line is not None:
                self._advised = True
                tqdm.write(line)  # above a progress bar

    def epoch(self) -> None:
        """Write down the epoch just finished."""
        self._write_metrics()
        history, epochs = self.state.history, self.config.all_epochs
        record = history[-1]
        self.points(_scalars(record))
        left = (epochs - len(history)) * record["seconds"]
        print(
            f"epoch {record['epoch']} [{len(history)}/{epochs}]  "
            f"lr {record['train_lr']:.2e}  "
            f"train loss {record['train_loss']:.4f} acc1 {record['train_acc1']:.2f} %  "
            f"test loss {record['test_loss']:.4f} acc1 {record['test_acc1']:.2f} % "
            f"acc5 {record['test_acc5']:.2f} %  "
            f"{record['images_per_second']:.0f} images/s "
            f"({100 * record['data_wait']:.0f} % waiting for data), "
            f"in testing {record['test_images_per_second']:.0f}  {duration(left)} left",
            flush=True,
        )
        if record["damaged_samples"]:
            print(f"{record['damaged_samples']} samples could not be read and were left out")

    def points(self, values: Mapping[str, float]) -> None:
        """Write down what was measured behind the epoch just finished."""
        epoch = self.state.history[-1]["epoch"]
        self.epochs.write(values, epoch)
        if self.wandb:
            self.wandb.write(values, epoch + 1)  # epochs behind us

    def close(self) -> None:
        """Let go of what is open, however the run ended."""
        for curves in (self.epochs, self.steps, self.wandb):
            if curves:
                curves.close()

    def end(self) -> None:
        """Report the two accuracies of a run, each by its name."""
        history, best, metric = self.state.history, self.state.best, self.state.metric
        if metric not in history[-1]:  # no epoch was left for a run told to choose by another one
            return
        # the averaged weights' accuracy where they are what was chosen by
        name = "ema_test_acc1" if metric.startswith("ema_") else "test_acc1"
        chosen_on = "held-out training samples" if "val" in metric else "the test set itself"
        how = " (test.py --weights ema)" if name.startswith("ema_") else ""
        last, best_one = history[-1], history[best]
        print(f"last epoch ({last['epoch']}): {_words(name)} {last[name]:.2f} %, last.pth{how}")
        print(
            f"best epoch ({best}), chosen on {chosen_on}: "
            f"{_words(name)} {best_one[name]:.2f} %, best.pth{how}",
            flush=True,
        )

    def _write_metrics(self) -> None:
        # the whole file every time: never half a line, never an epoch twice after a resume
        lines = "".join(json.dumps(record) + "\n" for record in self.state.history)
        write_text(self.folder / "metrics.jsonl", lines)


class Curves:
    """Points somewhere. Where they cannot be written it says so once, and training goes on.

    Args:
        name: For people.
        start: Gives what they are written to.
    """

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, name: object, start: Callable[[], Any]) -> None:
        self.name = name
        self.writer = None
        self.writer = self._try(start)

    def _try(self, action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except self.failures as error:  # of a thread, with a later call
            print(f"{self.name}: {first_sentence(error)}; no more curves there", file=sys.stderr)
            self.writer = None


class TensorBoard(Curves):
    """Event files in a folder, without the points from `purge_step` on of an earlier sitting."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        super().__init__(folder, lambda: SummaryWriter(folder, purge_step=purge_step))

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of these curves."""
        if self.writer is not None:
            self._try(self._add, values, step)

    def _add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self._try(self.writer.close)


class WeightsAndBiases(Curves):
    """The same run there when a run goes on: its id stays in the folder."""

    failures = (Exception,)  # no network, no log-in: whatever its client raises

    def __init__(self, folder: Path, config: Config) -> None:
        super().__init__("Weights & Biases", lambda: self._start(folder, config))

    @staticmethod
    def _start(folder: Path, config: Config) -> Any:
        import wandb

        remembered = folder / "wandb_id"
        if not remembered.exists():
            write_text(remembered, uuid.uuid4().hex)
        run = wandb.init(
            project="qkformer",
            name=folder.name,
            id=remembered.read_text(),
            resume="allow",
            dir=folder,
            config=asdict(config),
        )
        run.define_metric("*", step_metric="epoch")
        return run

    def write(self, values: Mapping[str, float], epochs: float) -> None:
        """Add a point to each of these curves, at so many epochs."""
        if self.writer is not None:
            self._try(self.writer.log, {**values, "epoch": epochs})

    def close(self) -> None:
        if self.writer is not None:
            self._try(self.writer.finish)


def check_packages(config: LogConfig) -> None:
    """Refuse to log with what is not installed.

    Raises:
        ConfigError: names the package.
    """
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("log.wandb: the package is not installed; pip install wandb")


def introduction(config: Config, data: Data, learner: Learner, world: World) -> list[str]:
    """What a run is going to do."""
    size, optimizer = config.samples_per_step(world.size), config.optimizer
    lines = [
        f"{config.model.name}, {count_parameters(learner.model):,} parameters, {config.data.name}: "
        f"{len(data.train)} training and {len(data.test)} test samples; "
        f"on {device_name(learner.device)}",
        f"{size} samples per step ({config.data.batch_size} x {world.size} processes x "
        f"{optimizer.accumulation_steps} batches), "
        f"peak learning rate {optimizer.peak_lr(size):.3g}",
    ]
    if config.epochs <= config.schedule.warmup_epochs:
        lines.append(
            f"schedule.warmup_epochs: {config.schedule.warmup_epochs:g}, so that all of epochs: "
            f"{config.epochs} are warm-up and the peak is not reached"
        )
    lines += precision_remarks(config.compute.precision, learner.device)
    return lines + graph_remarks(config, learner.device, world.size)


def estimate(
    config: Config,
    batches: TrainingBatches,
    tests: Mapping[str, int],
    seconds: tuple[float, float],
    learner: Learner,
) -> list[str]:
    """What a run would take, from one step and one batch of every test.

    Args:
        tests: Name of what is tested on -> batches of each process.
        seconds: Of a step, without waiting for data; of a batch of every test.
    """
    step, test = seconds
    steps = batches.size // batches.step_size
    epoch = steps * step + test * sum(tests.values()) / len(tests)
    memory = peak_memory(learner.device)
    return [
        f"a step takes {step:.3g} s, a batch in testing {test / len(tests):.3g} s; "
        f"{'memory not known' if memory is None else f'{memory:.0f} MiB of memory'}",
        f"an epoch of {steps} steps and its tests would take {duration(epoch)}, "
        f"{config.all_epochs} epochs {duration(epoch * config.all_epochs)}, if data come in time",
        "dry run: nothing was written",
    ]


def write_failure(
    folder: Path, error: TrainingError, learner: Learner, sampler: TrainingBatches, world: World
) -> None:
    """failed_step.json: where training failed, on which samples, in what state."""
    samples = []
    if "step" in error.record:
        sampler.set_position(sampler.epoch, error.record["step"] * sampler.step_size)
        step = islice(sampler, sampler.accumulation)
        samples = [index for batch in step for index, _seed in batch]
    record = {
        "error": str(error),
        "rank": world.rank,
        **error.record,
        "samples": samples,
        "not_finite": not_finite(learner.model),
        "amp_scale": learner.scaler.get_scale(),
    }
    # JSON has neither NaN nor infinity, Python's has: words take their place
    record = json.loads(json.dumps(record), parse_constant=str)
    write_text(folder / "failed_step.json", json.dumps(record, indent=2) + "\n")


def _scalars(record: Mapping) -> dict[str, float]:
    """What curves show of an epoch: numbers, those of stages by name."""
    scalars = {}
    for name, value in record.items():
        if isinstance(value, dict):
            scalars |= {f"{name}/{part}": inner for part, inner in value.items()}
        elif name not in ("epoch", "n_parameters") and value is not None:
            scalars[name] = value
    return scalars


def _words(name: str) -> str:
    return name.replace("_", " ").replace("ema", "EMA")
