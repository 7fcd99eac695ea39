"""Testing a checkpoint: exact under any number of processes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from qkformer.checkpoint.load import load_checkpoint
from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.loaders import evaluation_loader
from qkformer.data.registry import Data, load_data
from qkformer.files import write_text
from qkformer.models import SpikingTransformer
from qkformer.neurons import SpikingNeuron
from qkformer.training.cli import TestOptions
from qkformer.training.config import Config, ConfigError
from qkformer.training.distributed import World, announced, joined
from qkformer.training.environment import (
    choose_device,
    count_parameters,
    describe,
    make_folder,
)
from qkformer.training.learner import check_compute, computed, precision_remarks, prepare_model
from qkformer.training.loop import evaluate
from qkformer.training.model import check_model, create_model


def run_test(config: Config, options: TestOptions) -> dict[str, Any]:
    """Measure a checkpoint on the whole test set.

    Returns:
        The results, which results.json in the output folder holds too, and as a line behind those
        of earlier tests results.jsonl; with options.ssa "both", those of either attention by its
        name.

    Raises:
        ConfigError, DataError, CheckpointError: something given is wrong.
    """
    alone = announced()
    device = choose_device(options.device, alone)
    compute = replace(config.compute, sync_batchnorm=False)  # statistics are fixed in testing
    check_compute(compute, device)
    if not options.checkpoint.exists():  # before its folder is created as the default output
        raise ConfigError(f"--checkpoint {options.checkpoint}: no such file")
    with joined(alone, device) as world:
        world.first(lambda: _make_folder(options.output))
        configs = _configs(config, options.ssa)
        world.say(*_check(configs, options))
        world.say(*precision_remarks(config.compute.precision, device))
        data = load_data(config.data, AugmentationConfig(), config.model.T, training=False)
        world.wait()  # preparing data may take one machine hours longer than another
        place = {"rank": world.rank, "world_size": world.size}
        loader = evaluation_loader(data.test, config.data, device, **place)
        results = [_test(each, options, data, loader, device, world) for each in configs]
        latest = {each["ssa"]: each for each in results} if len(results) > 1 else results[0]
        world.first(lambda: _write(results, latest, options.output))
    return latest


def _make_folder(folder: Path) -> None:
    try:
        make_folder(folder)
    except ConfigError as error:
        raise ConfigError(f"{error}: choose another folder for the results by --output") from error


def _write(results: list[dict[str, Any]], latest: dict[str, Any], folder: Path) -> None:
    """results.json has the latest test, results.jsonl a line for every one in this folder."""
    every = folder / "results.jsonl"
    before = every.read_text() if every.exists() else ""
    write_text(every, before + "".join(json.dumps(each) + "\n" for each in results))
    write_text(folder / "results.json", json.dumps(latest, indent=2) + "\n")


def _configs(config: Config, ssa: str | None) -> list[Config]:
    """What to test one after the other: the configuration with the attention asked for, or both."""
    if ssa is None:
        return [config]
    modes = ("fixed", "original") if ssa == "both" else (ssa,)
    return [replace(config, model=replace(config.model, ssa=mode)) for mode in modes]


def _check(configs: list[Config], options: TestOptions) -> list[str]:
    """What is worth saying of the checkpoint before the data are looked for, if not refused."""
    asked = {"ssa": options.ssa, "T": options.time_steps}
    on_purpose = [key for key, value in asked.items() if value is not None]
    first, *others = configs
    use_ema = options.weights == "ema"
    lines = check_model(first, options.checkpoint, use_ema=use_ema, on_purpose=on_purpose)
    for config in others:  # of which the file fits all or none
        check_model(config)
    return lines


def _test(
    config: Config,
    options: TestOptions,
    data: Data,
    loader: DataLoader,
    device: torch.device,
    world: World,
) -> dict[str, Any]:
    model = create_model(config, data)
    report = load_checkpoint(model, options.checkpoint, use_ema=options.weights == "ema")
    model = prepare_model(model, config.compute, device)
    if config.compute.compile:
        model.compile()
    tested = evaluate(
        model,
        loader,
        prepare=data.prepare.to(device),
        device=device,
        precision=config.compute.precision,
        on_damaged=config.data.on_damaged,
        world=world,
    )
    results = {
        "acc1": tested["acc1"],
        "acc5": tested["acc5"],
        "loss": tested["loss"],
        "images": tested["samples"],
        "damaged": tested["damaged"],
        **_facts(config, data, model),
        "precision": computed(config.compute.precision, device),
        "checkpoint": str(options.checkpoint),
        "checkpoint_md5": report.md5,
        "known_as": report.known_as,
        "weights": options.weights,
        "epoch": report.epoch,
        **describe(device, world),
    }
    world.say(*(f"{name:15} {value}" for name, value in results.items()), "")
    if report.has_ema and options.weights != "ema":
        world.say(f"{options.checkpoint} has averaged weights too: --weights ema tests them")
    if model.ssa == "original":
        world.say(
            "ssa original: these numbers hold for batches of "
            f"{config.data.evaluation_batch_size} in this order; a sample's output depends on the "
            "others of its batch"
        )
    return results


def _facts(config: Config, data: Data, model: SpikingTransformer) -> dict[str, Any]:
    """What was tested on what, as far as it decides the numbers."""
    neurons = {type(part).__name__ for part in model.modules() if isinstance(part, SpikingNeuron)}
    # images are resized and cut out one by one; event frames go to the device as they are
    steps = data.test.transform.transforms if data.test.transform else []
    released = "released" if config.data.name == "cifar10-dvs" else None
    return {
        "data": config.data.name,
        "split": config.data.split or released,
        "resize": ", ".join(str(step) for step in steps if isinstance(step, nn.Module)),
        "model": config.model.name,
        "neuron": ", ".join(sorted(neurons)),
        "arguments": config.model.arguments(),
        "parameters": count_parameters(model),
        "T": model.T,
        "ssa": model.ssa,
        "input_size": [data.in_chans, config.data.image_size, config.data.image_size],
        "batch_size": config.data.evaluation_batch_size,
    }
