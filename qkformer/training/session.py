"""A training run, from a configuration to the files in its folder."""

import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from qkformer.checkpoint.load import load_checkpoint
from qkformer.data.loaders import evaluation_loader, training_loader
from qkformer.data.registry import Data, load_data
from qkformer.files import remove_leftovers, write_text
from qkformer.training.cli import TrainOptions
from qkformer.training.config import Config, ConfigError, to_yaml
from qkformer.training.distributed import World, announced, joined
from qkformer.training.environment import (
    FolderLock,
    choose_device,
    count_parameters,
    describe,
    device_name,
    make_folder,
    peak_memory,
)
from qkformer.training.health import FiringRates, by_stage, dead_layers, not_finite
from qkformer.training.learner import Learner, check_compute, precision_remarks
from qkformer.training.log import RunLog
from qkformer.training.loop import evaluate, train_one_epoch
from qkformer.training.model import check_model, create_model
from qkformer.training.progress import TrainingError
from qkformer.training.randomness import seed_everything
from qkformer.training.resume import find_checkpoint, restore
from qkformer.training.schedule import create_schedule
from qkformer.training.signals import StopRequest
from qkformer.training.state import Keeper, RunState


def run_training(
    config: Config, options: TrainOptions, stop: StopRequest | None = None
) -> RunState:
    """Train, from the start or from where the run stopped, until the last epoch is done.

    Args:
        stop: Handles the signals; None for a run that they end.

    Raises:
        ConfigError, DataError, CheckpointError: something given is wrong.
        TrainingError: training cannot go on.
        Stopped: a signal asked for it; nothing is lost.
    """
    alone = announced()
    device = choose_device(options.device, alone)
    check_compute(config.compute, device)
    if config.model.weights and not Path(config.model.weights).is_file():
        raise ConfigError(f"model.weights: there is no file {config.model.weights}")
    config.check_rates(alone.size)
    with joined(alone, device) as world:
        return _train(config, options, device, world, stop or StopRequest())


def _train(
    config: Config, options: TrainOptions, device: torch.device, world: World, stop: StopRequest
) -> RunState:
    output = options.output
    world.first(lambda: make_folder(output))
    lock = FolderLock(output)
    world.first(lock.take)
    samples = config.samples_per_step(world.size)
    found = world.first(lambda: find_checkpoint(options.resume, output, config, samples))
    world.say(*check_model(config, None if found else config.model.weights))
    data = load_data(config.data, config.augmentation, config.model.T)
    world.wait()  # preparing data may take one machine hours longer than another
    place = {"rank": world.rank, "world_size": world.size}
    batches = training_loader(
        data.train,
        config.data,
        device,
        seed=config.seed,
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
    if config.model.weights and not found:
        report = load_checkpoint(model, config.model.weights, skip_head=config.model.skip_head)
        world.say(f"starts from {report}")
    learner = Learner(model, config, device, world)
    metric = f"{'ema_' if learner.ema else ''}{'val' if 'val' in tests else 'test'}_acc1"
    state = RunState(metric)
    if found:
        world.say(f"goes on from {found.path}", *(f"with {change}" for change in found.changed))
        state = restore(found, learner, output, metric, world)

    stop.remember()
    keeper = Keeper(output, state, learner, config, world, stop)
    world.first(lambda: _write_facts(keeper, device))
    log = RunLog(output, state.history, state.metric) if world.is_main else None
    world.say(*_introduction(config, data, learner, world))
    try:
        for epoch in range(len(state.history), config.all_epochs):
            state.add(_epoch(epoch, keeper, data, batches, tests))
            keeper.save_epoch()
            if log:
                log.epoch(state.history, config.all_epochs)
    except TrainingError as error:
        _write_failure(output, error, learner, batches, world)
        raise
    if log:
        log.end(state.history, state.best)
    return state


def _epoch(
    epoch: int, keeper: Keeper, data: Data, batches: DataLoader, tests: dict[str, DataLoader]
) -> dict[str, Any]:
    """Train on (the rest of) an epoch, test; the epoch's metrics."""
    config, learner, world = keeper.config, keeper.learner, keeper.world
    peak = config.optimizer.peak_lr(config.samples_per_step(world.size))
    progress = train_one_epoch(
        learner,
        batches,
        epoch=epoch,
        augment=data.augment.to(learner.device),
        learning_rate=create_schedule(config.schedule, peak, config.epochs),
        on_damaged=config.data.on_damaged,
        progress=keeper.state.progress,
        world=world,
        pauses=keeper,
    )
    start = time.monotonic()

    def stop_if_asked() -> None:
        if keeper.due():
            keeper.take(progress)

    record = {"epoch": epoch} | progress.metrics(world)
    rates = FiringRates(learner.model)
    weights = {"": learner.model} | ({"ema_": learner.ema.module} if learner.ema else {})
    for whose, model in weights.items():
        world.share_buffers(model)
        for name, loader in tests.items():
            tested = evaluate(
                model,
                loader,
                prepare=data.prepare.to(learner.device),
                device=learner.device,
                precision=config.compute.precision,
                on_damaged=config.data.on_damaged,
                rates=rates if (whose, name) == ("", "test") else None,
                world=world,
                between=stop_if_asked,
            )
            record |= {f"{whose}{name}_{key}": tested[key] for key in ("loss", "acc1", "acc5")}
            record["damaged_samples"] += tested["damaged"] if not whose else 0
    measured = rates.rates(world)
    world.say(*(f"warning: after epoch {epoch}, {line}" for line in dead_layers(measured)))
    return record | {
        "firing_rate": by_stage(measured),
        "memory_mib": peak_memory(learner.device),
        "n_parameters": count_parameters(learner.model),
        "seconds": progress.seconds + time.monotonic() - start,
    }


def _introduction(config: Config, data: Data, learner: Learner, world: World) -> list[str]:
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
    return lines + precision_remarks(config.compute.precision, learner.device)


def _write_facts(keeper: Keeper, device: torch.device) -> None:
    """Clean up behind a run that was killed; write what this one is."""
    output = keeper.folder
    remove_leftovers(output)
    (output / ".next.pth").unlink(missing_ok=True)
    write_text(output / "config.yml", to_yaml(keeper.config))
    facts = describe(device, keeper.world)
    write_text(output / "environment.json", json.dumps(facts, indent=2) + "\n")
    keeper.write_best()  # where the run was killed between last.pth and best.pth


def _write_failure(
    output: Path, error: TrainingError, learner: Learner, batches: DataLoader, world: World
) -> None:
    sampler = batches.batch_sampler
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
    write_text(output / "failed_step.json", json.dumps(record, indent=2) + "\n")
