"""A training run, from a configuration to the files in its folder: read it from top to bottom."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from qkformer.analysis.log import log_energy
from qkformer.checkpoint.load import load_checkpoint
from qkformer.console import Progress
from qkformer.data.loaders import evaluation_loader, read, training_loader
from qkformer.data.registry import Data, load_data
from qkformer.files import Lock, remove_leftovers, write_text
from qkformer.training.checkpointing import (
    Checkpoints,
    RunState,
    find_checkpoint,
    restore,
    take_folder,
)
from qkformer.training.command_line import TrainOptions
from qkformer.training.config import Config, ConfigError
from qkformer.training.config_file import to_yaml
from qkformer.training.distributed import StopRequest, World, announced, joined
from qkformer.training.environment import (
    check_compute,
    choose_device,
    describe,
    look_at_folder,
    peak_memory,
    seed_everything,
)
from qkformer.training.evaluate import evaluate
from qkformer.training.graph import check_graph
from qkformer.training.learner import Learner
from qkformer.training.log import (
    RunLog,
    check_packages,
    estimate,
    introduction,
    write_failure,
)
from qkformer.training.metrics import (
    EpochMetrics,
    FiringRates,
    TrainingError,
    by_stage,
    check_weights,
    dead_layers,
)
from qkformer.training.model import (
    check_loss,
    check_model,
    count_parameters,
    create_model,
    create_teacher,
)
from qkformer.training.schedule import create_schedule

STEPS_BETWEEN_LOOKS = 10  # a look at what was computed makes a GPU wait


@dataclass
class Run:
    """What the epochs of a run need.

    Attributes:
        batches: Training samples, from qkformer.data.loaders.training_loader.
        tests: By name, what is tested on behind every epoch, from evaluation_loader.
        learning_rate: Epochs behind us (a fraction inside an epoch) -> learning rate.
        state: How far it has come.
        checkpoints, log: What it leaves behind; None for a try that leaves nothing. The log is the
            main process's.
    """

    config: Config
    world: World
    data: Data
    batches: DataLoader
    tests: dict[str, DataLoader]
    learner: Learner
    learning_rate: Callable[[float], float]
    state: RunState
    checkpoints: Checkpoints | None = None
    log: RunLog | None = None


def run_training(
    config: Config, options: TrainOptions, stop: StopRequest | None = None
) -> RunState:
    """Train, from the start or from where the run stopped, until the last epoch is done.

    Args:
        stop: Handles the signals; None for a run that they end.

    Raises:
        ConfigError, DataError, FileError: something given is wrong.
        ProcessError: the processes do not find each other, or lose one.
        TrainingError: training cannot go on.
        Stopped: a signal asked for it; nothing is lost.
    """
    alone = announced()
    device = choose_device(options.device, alone)
    check_compute(config.compute, device)
    check_packages(config.log)
    weights = {"model.weights": config.model.weights}
    for key, file in (weights | {"loss.teacher_weights": config.loss.teacher_weights}).items():
        if file and not Path(file).is_file():
            raise ConfigError(f"{key}: there is no file {file}")
    config.check_rates(alone.size)
    check_graph(config, device, alone.size)
    with joined(alone, device) as world:
        if options.dry_run:
            world.first(lambda: look_at_folder(options.output))
            run = set_up(config, options, device, world)
            dry_run(run)
            return run.state
        lock = Lock(options.output / ".lock")
        try:
            world.first(lambda: take_folder(options.output, lock))
            run = set_up(config, options, device, world)
            train_epochs(run, options.output, stop or StopRequest())
            return run.state
        finally:
            lock.release()


def set_up(config: Config, options: TrainOptions, device: torch.device, world: World) -> Run:
    """Everything that training needs, as at its start or where it stopped."""
    samples = config.samples_per_step(world.size)
    found = world.first(lambda: find_checkpoint(options.resume, options.output, config, samples))
    weights = None if found else config.model.weights
    world.say(*check_model(config, weights))
    check_loss(config)
    data = load_data(config.data, config.augmentation, config.model.T)
    world.wait_for_data()
    place = {"rank": world.rank, "world_size": world.size}
    batches = training_loader(
        data.train,
        config.data,
        device,
        seed=config.seed,
        repeats=config.augmentation.repeats,
        accumulation=config.optimizer.accumulation_steps,
        **place,
    )
    tests = {
        name: evaluation_loader(part, config.data, device, **place)
        for name, part in (("val", data.validation), ("test", data.test))
        if part is not None
    }

    seed_everything(config.seed + world.rank)
    model = create_model(config, data)
    if weights:
        report = load_checkpoint(model, weights, skip_head=config.model.skip_head)
        world.say(f"starts from {report}")
    learner = Learner(model, config, device, world, create_teacher(config, data))
    data.augment.to(device)
    data.prepare.to(device)
    schedule = create_schedule(config.schedule, config.optimizer.peak_lr(samples), config.epochs)
    metric = f"{'ema_' if learner.ema else ''}{'val' if 'val' in tests else 'test'}_acc1"
    state = RunState(metric)
    if found:
        world.say(f"goes on from {found.path}", *(f"with {change}" for change in found.changed))
        state = restore(found, learner, options.output, metric, world)
    return Run(config, world, data, batches, tests, learner, schedule, state)


def train_epochs(run: Run, folder: Path, stop: StopRequest) -> None:
    """Epoch after epoch: train, test, save, and say so."""
    config, world, state = run.config, run.world, run.state
    stop.remember()  # from here on there is something to save
    inputs = run.data.inputs
    run.checkpoints = Checkpoints(folder, state, run.learner, config, inputs, world, stop)
    world.first(lambda: _write_facts(run, folder))
    if world.is_main:
        run.log = RunLog(folder, state, config, run.batches.batch_sampler)
    world.say(*introduction(config, run.data, run.learner, world))
    try:
        for epoch in range(len(state.history), config.all_epochs):
            train_one_epoch(run, epoch)
            state.add(test_one_epoch(run, epoch))
            run.checkpoints.save_epoch()
            if run.log:
                run.log.epoch()
        if config.log.energy:
            measure_energy(run, folder)
        if run.log:
            run.log.end()
    except TrainingError as error:
        write_failure(folder, error, run.learner, run.batches.batch_sampler, world)
        raise
    finally:
        if run.log:
            run.log.close()


def train_one_epoch(run: Run, epoch: int, most_steps: int | None = None) -> None:
    """Train on what is left of an epoch; `run.state.progress` says how far it has come.

    Args:
        epoch: Index of this epoch, from 0.
        most_steps: Where to stop for a try.

    Raises:
        TrainingError: a loss, a gradient or a weight is no longer finite.
        DataError: samples cannot be read.
    """
    learner, device, sampler = run.learner, run.learner.device, run.batches.batch_sampler
    progress = run.state.progress = run.state.progress or EpochMetrics()
    sampler.set_position(epoch, progress.done)
    learner.model.train()
    batches = read(run.batches, run.config.data.on_damaged)
    first = progress.steps
    steps = first + len(sampler) // sampler.accumulation
    last = steps if most_steps is None else min(steps, first + most_steps)
    progress.start_clock()
    with Progress(steps, f"epoch {epoch}", start=first, quiet=not run.world.is_main) as bar:
        for step in range(first + 1, last + 1):
            rate = run.learning_rate(epoch + sampler.fraction(progress.done))
            parts, known = [], []
            for _ in range(sampler.accumulation):
                batch = progress.next_of(batches)
                samples = batch.samples.to(device, non_blocking=True)  # [B, C, H, W], events have T
                labels = batch.targets.to(device, non_blocking=True)  # [B]
                parts.append(run.data.augment(samples, labels, epoch))
                known.append((labels, len(batch.damaged)))
            results, norm = learner.step(parts, rate)
            for (labels, damaged), (loss, logits) in zip(known, results, strict=True):
                correct = (logits.argmax(1) == labels).sum()
                progress.add_batch(loss, correct, len(labels), damaged)
            progress.add_step(rate, norm, sampler.step_size)

            save = run.checkpoints is not None and run.checkpoints.due()
            tell = run.log is not None and run.log.due(step)
            if save or tell or step == last or step % STEPS_BETWEEN_LOOKS == 0:
                progress.look(epoch, may_overflow=learner.scaler.is_enabled())
                progress.check_scale(learner.scaler, epoch)
            bar.show(step, run.log.step(epoch) if tell else None)
            if save:
                run.checkpoints.save_within()
    check_weights(learner.model, epoch)


def test_one_epoch(run: Run, epoch: int, most_batches: int | None = None) -> dict[str, Any]:
    """Test behind an epoch, the trained and the averaged weights; the metrics of the epoch."""
    learner, world, progress = run.learner, run.world, run.state.progress
    start = time.monotonic()

    def stop_if_asked() -> None:
        if run.checkpoints is not None and run.checkpoints.due():
            run.checkpoints.save_within()

    record = {"epoch": epoch} | progress.total(world)
    rates = FiringRates(learner.model)
    for whose, model in learner.tested_models(world).items():
        for name, loader in run.tests.items():
            measured = (whose, name) == ("", "test")
            tested = evaluate(
                model,
                loader,
                prepare=run.data.prepare,
                device=learner.device,
                precision=learner.precision,
                on_damaged=run.config.data.on_damaged,
                rates=rates if measured else None,
                world=world,
                between=stop_if_asked,
                most_batches=most_batches,
            )
            record |= {f"{whose}{name}_{key}": tested[key] for key in ("loss", "acc1", "acc5")}
            record["damaged_samples"] += tested["damaged"] if not whose else 0
            if measured:
                record["test_images_per_second"] = tested["images_per_second"]
    firing = rates.rates(world)
    if most_batches is None:
        world.say(*(f"warning: after epoch {epoch}, {line}" for line in dead_layers(firing)))
    return record | {
        "firing_rate": by_stage(firing),
        "memory_mib": peak_memory(learner.device),
        "n_parameters": count_parameters(learner.model),
        "seconds": progress.seconds + time.monotonic() - start,
    }


def measure_energy(run: Run, folder: Path) -> None:
    """What the last weights cost on the test set, in files and as points in TensorBoard."""
    learner, config, world = run.learner, run.config, run.world
    batches = read(run.tests["test"], config.data.on_damaged)
    scalars = log_energy(
        learner.model.eval(),
        (run.data.prepare(batch.samples.to(learner.device)) for batch in batches),
        folder,
        world=world,
        is_main=world.is_main,
        data=config.data.name,
        ssa=getattr(learner.model, "ssa", None),
        parameters=count_parameters(learner.model),
    )
    if run.log:
        run.log.points(scalars)


def dry_run(run: Run) -> None:
    """Twice a step and a test batch: what a run would take, with nothing left behind."""
    epoch, world = len(run.state.history), run.world
    world.say(*introduction(run.config, run.data, run.learner, world))
    for _ in range(2):  # the first time warms up: memory, kernels, loading processes
        run.state.progress = None  # a whole epoch is ahead, wherever the run has stopped
        train_one_epoch(run, epoch, most_steps=1)
        start = time.monotonic()
        test_one_epoch(run, epoch, most_batches=1)
        test = time.monotonic() - start
    progress = run.state.progress
    tests = {name: loader.batch_sampler.longest for name, loader in run.tests.items()}
    seconds = progress.seconds - progress.waited, test
    world.say(*estimate(run.config, run.batches.batch_sampler, tests, seconds, run.learner))


def _write_facts(run: Run, folder: Path) -> None:
    """Clean up behind a run that was killed; write what this one is."""
    remove_leftovers(folder)
    write_text(folder / "config.yml", to_yaml(run.config))
    facts = describe(run.learner.device, run.world)
    write_text(folder / "environment.json", json.dumps(facts, indent=2) + "\n")
    run.checkpoints.write_best()  # where the run was killed between last.pth and best.pth
