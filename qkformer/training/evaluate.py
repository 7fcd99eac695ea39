"""Testing: a pass over test samples, and test.py's measurement of a checkpoint."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qkformer.checkpoint.load import LoadReport, load_checkpoint
from qkformer.console import Progress
from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.loaders import evaluation_loader, read
from qkformer.data.registry import Data, load_data
from qkformer.files import append_lines, write_text
from qkformer.inference import quantize_int8
from qkformer.neurons import FIRING
from qkformer.training.command_line import TestOptions
from qkformer.training.config import Config, ConfigError
from qkformer.training.distributed import World, announced, joined
from qkformer.training.environment import (
    autocast,
    check_compute,
    choose_device,
    computed,
    describe,
    make_folder,
    precision_remarks,
)
from qkformer.training.metrics import MEASURED_BATCHES, FiringRates, TrainingError
from qkformer.training.model import (
    check_model,
    count_parameters,
    create_model,
    megabytes,
    prepare_model,
)

ALONE = World()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    *,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
    precision: str = "fp32",
    on_damaged: str = "error",
    rates: FiringRates | None = None,
    world: World = ALONE,
    between: Callable[[], None] = lambda: None,
    most_batches: int | None = None,
) -> dict[str, float]:
    """Test on every sample, each counted once however many processes share the work.

    Args:
        model: The bare model: processes whose share is a batch shorter must not be waited for.
        loader: From qkformer.data.loaders.evaluation_loader.
        prepare: Samples on the device, as loaded -> input of the model.
        precision: As ComputeConfig has it.
        on_damaged: What becomes of samples that cannot be read: error or skip.
        rates: Gets the firing rates of the first batches.
        between: Called behind every batch, equally often in all processes.
        most_batches: Where to stop for a try.

    Returns:
        loss (cross-entropy without label smoothing), acc1 and acc5 in percent; how many samples
        were counted, and how many damaged ones could not be; images_per_second.

    Raises:
        TrainingError: the loss is not a finite number.
        DataError: samples cannot be read.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, top 1, top 5
    seen = damaged = 0
    batches, start = read(loader, on_damaged), time.monotonic()
    steps = min(loader.batch_sampler.longest, most_batches or loader.batch_sampler.longest)
    with Progress(steps, "test", quiet=not world.is_main) as bar:
        for step in range(steps):
            batch = next(batches, None)
            if batch is not None:
                samples = prepare(batch.samples.to(device, non_blocking=True))
                targets = batch.targets.to(device, non_blocking=True)
                with autocast(precision, device):
                    if rates is not None and step < MEASURED_BATCHES:
                        logits = rates.measure(model, samples)
                    else:
                        logits = model(samples)
                loss = nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
                hits = logits.topk(min(5, logits.shape[1])).indices == targets.unsqueeze(1)
                sums += torch.stack([loss, hits[:, 0].sum(), hits.sum()])
                seen += len(targets)
                damaged += len(batch.damaged)
            bar.show(step + 1)
            between()
    counts = torch.tensor([seen, damaged], dtype=torch.float64)
    loss, top1, top5, seen, damaged = world.total(torch.cat([sums.cpu(), counts])).tolist()
    if not loss < float("inf"):
        raise TrainingError(f"the test loss is {loss}")
    return {
        "loss": loss / seen,
        "acc1": 100 * top1 / seen,
        "acc5": 100 * top5 / seen,
        "samples": int(seen),
        "damaged": int(damaged),
        "images_per_second": seen / (time.monotonic() - start),
    }


# ----------------------------------------------------------------------------------- test.py


def run_test(config: Config, options: TestOptions) -> dict[str, Any]:
    """Measure a checkpoint on the whole test set.

    Returns:
        The results, which results.json in the output folder holds too, and as a line behind those
        of earlier tests results.jsonl; with options.ssa "both", those of either attention by its
        name.

    Raises:
        ConfigError, DataError, FileError: something given is wrong.
        ProcessError: the processes do not find each other.
    """
    alone = announced()
    device = choose_device(options.device, alone)
    check_compute(config.compute, device)
    if not options.checkpoint.exists():  # before its folder is created as the default output
        raise ConfigError(f"--checkpoint {options.checkpoint}: no such file")
    with joined(alone, device) as world:
        world.first(lambda: _make_folder(options.output))
        configs = tested_configs(config, options.ssa)
        world.say(options.source, *check_tested(configs, options))
        world.say(*precision_remarks(config.compute.precision, device))
        data, loader = load_tests(config, device, world)
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
    append_lines(folder / "results.jsonl", [json.dumps(each) for each in results])
    write_text(folder / "results.json", json.dumps(latest, indent=2) + "\n")


def tested_configs(config: Config, ssa: str | None) -> list[Config]:
    """What to test one after the other: the configuration with the attention asked for, or both."""
    if ssa is None:
        return [config]
    modes = ("fixed", "original") if ssa == "both" else (ssa,)
    return [replace(config, model=replace(config.model, ssa=mode)) for mode in modes]


def check_tested(configs: list[Config], options: TestOptions) -> list[str]:
    """What is worth saying of the checkpoint before the data are looked for.

    Raises:
        ConfigError, CheckpointError: as :func:`qkformer.training.model.check_model`.
    """
    asked = {"ssa": options.ssa, "T": options.time_steps}
    on_purpose = [key for key, value in asked.items() if value is not None]
    first, *others = configs
    use_ema = options.weights == "ema"
    lines = check_model(first, options.checkpoint, use_ema=use_ema, on_purpose=on_purpose)
    for config in others:  # of which the file fits all or none
        check_model(config)
    return lines


def load_tests(config: Config, device: torch.device, world: World) -> tuple[Data, DataLoader]:
    """The data, their `prepare` on the device, and this process's share of the test batches."""
    data = load_data(config.data, AugmentationConfig(), config.model.T, training=False)
    world.wait_for_data()
    place = {"rank": world.rank, "world_size": world.size}
    data.prepare.to(device)
    return data, evaluation_loader(data.test, config.data, device, **place)


def load_tested(
    config: Config, options: TestOptions, data: Data, device: torch.device
) -> tuple[nn.Module, LoadReport]:
    """The model with the checkpoint's weights, on the device, and what was loaded."""
    model = create_model(config, data)
    report = load_checkpoint(model, options.checkpoint, use_ema=options.weights == "ema")
    if options.quantize:
        model = quantize_int8(model)
    return prepare_model(model, config.compute, device), report


def _test(
    config: Config,
    options: TestOptions,
    data: Data,
    loader: DataLoader,
    device: torch.device,
    world: World,
) -> dict[str, Any]:
    model, report = load_tested(config, options, data, device)
    if config.compute.compile:
        model.compile()
    tested = evaluate(
        model,
        loader,
        prepare=data.prepare,
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
        "images_per_second": tested["images_per_second"],
        **_facts(config, data, model),
        "precision": computed(config.compute.precision, device),
        "checkpoint": str(options.checkpoint),
        "checkpoint_md5": report.md5,
        "known_as": report.known_as,
        "weights": options.weights,
        "quantize": options.quantize,
        "megabytes": megabytes(model),
        "epoch": report.epoch,
        **describe(device, world),
    }
    world.say(*(f"{name:15} {value}" for name, value in results.items()), "")
    if report.has_ema and options.weights != "ema":
        world.say(f"{options.checkpoint} has averaged weights too: --weights ema tests them")
    if results["ssa"] == "original":
        world.say(
            f"ssa original: these numbers hold for batches of {results['batch_size']} in this "
            "order; a sample's output depends on the others of its batch"
        )
    return results


def _facts(config: Config, data: Data, model: nn.Module) -> dict[str, Any]:
    """What was tested on what, as far as it decides the numbers."""
    neurons = {type(part).__name__ for part in model.modules() if isinstance(part, FIRING)}
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
        "T": getattr(model, "T", None),  # which an ANN has not
        "ssa": getattr(model, "ssa", None),
        "input_size": [data.in_chans, config.data.image_size, config.data.image_size],
        "batch_size": config.data.evaluation_batch_size,
    }
