"""Testing a checkpoint: exact under any number of processes."""

import json
from dataclasses import replace
from typing import Any

import torch

from qkformer.checkpoint.io import write_text
from qkformer.checkpoint.load import load_checkpoint
from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.loaders import evaluation_loader
from qkformer.data.registry import Data, load_data
from qkformer.training.cli import TestOptions
from qkformer.training.config import Config, ConfigError
from qkformer.training.distributed import World, announced, joined
from qkformer.training.environment import (
    choose_device,
    count_parameters,
    device_name,
    make_folder,
    versions,
)
from qkformer.training.learner import check_compute, prepare_model
from qkformer.training.loop import evaluate
from qkformer.training.model import check_model, create_model


def run_test(config: Config, options: TestOptions) -> dict[str, Any]:
    """Measure a checkpoint on the whole test set.

    Returns:
        The results, which results.json in the output folder holds too; with options.ssa "both",
        those of either attention by its name.

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
        world.first(lambda: make_folder(options.output))
        configs = _configs(config, options.ssa)
        world.say(*_check(configs, options))
        data = load_data(config.data, AugmentationConfig(), config.model.T, training=False)
        world.wait()  # preparing data may take one machine hours longer than another
        results = [_test(each, options, data, device, world) for each in configs]
        results = {each["ssa"]: each for each in results} if len(results) > 1 else results[0]
        text = json.dumps(results, indent=2) + "\n"
        world.first(lambda: write_text(options.output / "results.json", text))
    return results


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
    use_ema = options.weights == "ema"
    lines = [
        check_model(config, options.checkpoint, use_ema=use_ema, on_purpose=on_purpose)
        for config in configs
    ]
    return lines[0]


def _test(
    config: Config,
    options: TestOptions,
    data: Data,
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
        evaluation_loader(data.test, config.data, device, rank=world.rank, world_size=world.size),
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
        "data": config.data.name,
        "model": config.model.name,
        "parameters": count_parameters(model),
        "T": model.T,
        "ssa": model.ssa,
        "input_size": [data.in_chans, config.data.image_size, config.data.image_size],
        "batch_size": config.data.batch_size,
        "processes": world.size,
        "precision": config.compute.precision,
        "checkpoint": str(options.checkpoint),
        "checkpoint_md5": report.md5,
        "known_as": report.known_as,
        "weights": options.weights,
        "epoch": report.epoch,
        "device": device_name(device),
        "versions": versions(),
    }
    world.say(*(f"{name:15} {value}" for name, value in results.items()), "")
    if model.ssa == "original":
        world.say(
            f"ssa original: these numbers hold for batches of {config.data.batch_size} in this "
            "order; a sample's output depends on the others of its batch"
        )
    return results
