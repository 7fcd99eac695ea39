"""train.py and test.py, which every data set's folder has: from a command line to files."""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import qkformer
from qkformer.checkpoint.io import CheckpointError, remove_leftovers, write_text
from qkformer.data.datasets import DataError, ImageData, load_dataset
from qkformer.data.loaders import evaluation_loader, training_loader
from qkformer.data.transforms import Normalise, random_shift
from qkformer.training.cli import TestOptions, TrainOptions, parse_test, parse_train
from qkformer.training.config import Config, ConfigError, to_yaml
from qkformer.training.distributed import this_process
from qkformer.training.log import RunLog
from qkformer.training.loop import TrainingError, evaluate, train_one_epoch
from qkformer.training.optimizer import create_optimizer
from qkformer.training.schedule import create_schedule
from qkformer.training.state import RunState, find_checkpoint, restore, seed_everything


def train(default_config: Path, argv: Sequence[str] | None = None) -> None:
    """train.py: train a model as configured, in a folder from which it can go on.

    Args:
        default_config: YAML file that applies unless the command line names another.
        argv: The command line, sys.argv[1:] unless given.

    Raises:
        SystemExit: with one line and status 2 where something given is wrong, 1 where training
            failed, 130 after Ctrl-C.
    """
    with _errors_in_one_line("--resume auto goes on after the last finished epoch"):
        run_training(*parse_train(default_config, argv))


def test(default_config: Path, argv: Sequence[str] | None = None) -> None:
    """test.py: measure a checkpoint on the whole test set. Arguments and exits as for `train`."""
    with _errors_in_one_line("nothing is written"):
        run_test(*parse_test(default_config, argv))


def run_training(config: Config, options: TrainOptions) -> RunState:
    """Train, from the start or from where the run stopped, until the last epoch is done."""
    process, device, output = this_process(), _device(options.device), options.output
    _make_folder(output)
    found = find_checkpoint(options.resume, output, config)
    if found:
        print(f"goes on from {found.path}", *found.changed, sep="\n  with ")

    data = load_dataset(config.data)
    place = {"rank": process.rank, "world_size": process.world_size}
    train_batches = training_loader(data.train, config.data, device, seed=config.seed, **place)
    test_batches = evaluation_loader(data.test, config.data, device)
    normalise = Normalise(data.mean, data.std).to(device)

    def augment(images: Tensor) -> Tensor:
        return normalise(random_shift(images, config.augmentation.shift))

    seed_everything(config.seed + process.rank)
    model = _create_model(config, data).to(device)
    optimizer = create_optimizer(model, config.optimizer)
    learning_rate = create_schedule(config.schedule, config.optimizer.lr, config.epochs)
    loss = nn.CrossEntropyLoss(label_smoothing=config.loss.label_smoothing)
    state = restore(found, model, optimizer, output) if found else RunState()

    remove_leftovers(output)
    write_text(output / "config.yml", to_yaml(config))
    if found:
        state.save_best(output, model, config)
    log = RunLog(output, state.history)
    print(
        f"{config.model.name}, {_count_parameters(model):,} parameters, {config.data.name}: "
        f"{len(data.train)} training and {len(data.test)} test images; on {_device_name(device)}",
        flush=True,
    )

    train_pass = partial(train_one_epoch, model, train_batches, optimizer, loss, device=device)
    for epoch in range(len(state.history), config.epochs):
        start = time.monotonic()
        record = {"epoch": epoch}
        record |= train_pass(epoch=epoch, prepare=augment, learning_rate=learning_rate)
        record |= evaluate(model, test_batches, prepare=normalise, device=device)
        record |= {"n_parameters": _count_parameters(model), "seconds": time.monotonic() - start}
        state.add(record)
        state.save(output, model, optimizer, config)
        log.epoch(state.history, config.epochs)
    log.end(state.history, state.best)
    return state


def run_test(config: Config, options: TestOptions) -> dict:
    """Measure a checkpoint; the results, which results.json in the output folder holds too."""
    this_process()  # refuses several, which would each write the results
    device = _device(options.device)
    if not options.checkpoint.exists():  # before its folder is created as the default output
        raise ConfigError(f"--checkpoint {options.checkpoint}: no such file")
    _make_folder(options.output)
    data = load_dataset(config.data)
    model = _create_model(config, data)
    report = qkformer.load_checkpoint(model, options.checkpoint)
    normalise = Normalise(data.mean, data.std).to(device)
    batches = evaluation_loader(data.test, config.data, device)
    tested = evaluate(model.to(device), batches, prepare=normalise, device=device)
    results = {
        "acc1": tested["test_acc1"],
        "acc5": tested["test_acc5"],
        "loss": tested["test_loss"],
        "images": len(data.test),
        "data": config.data.name,
        "model": config.model.name,
        "parameters": _count_parameters(model),
        "T": model.T,
        "ssa": model.ssa,
        "input_size": [data.in_chans, config.data.image_size, config.data.image_size],
        "batch_size": config.data.batch_size,
        "checkpoint": str(options.checkpoint),
        "checkpoint_md5": report.md5,
        "epoch": report.epoch,
        "device": _device_name(device),
        "versions": _versions(),
    }
    write_text(options.output / "results.json", json.dumps(results, indent=2) + "\n")
    for name, value in results.items():
        print(f"{name:15} {value}")
    return results


@contextmanager
def _errors_in_one_line(if_interrupted: str) -> Iterator[None]:
    """Say in one line what users can put right or stop themselves, without a traceback; exit."""
    try:
        yield
    except (ConfigError, DataError, CheckpointError) as error:
        status, message = 2, f"error: {error}"
    except TrainingError as error:
        status, message = 1, f"error: {error}"
    except KeyboardInterrupt:
        status, message = 130, f"interrupted; {if_interrupted}"
    else:
        return
    print(message, file=sys.stderr)
    raise SystemExit(status)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device here; use cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _make_folder(folder: Path) -> None:
    """Create the output folder and make sure, before any work, that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--output {folder}: {error.strerror}") from error


def _create_model(config: Config, data: ImageData) -> nn.Module:
    arguments = config.model.arguments()
    try:
        model = qkformer.create_model(
            config.model.name, num_classes=data.num_classes, in_chans=data.in_chans, **arguments
        )
    except (TypeError, ValueError, RuntimeError) as error:  # the last: a backend that cannot run
        raise ConfigError(f"model: {' '.join(str(error).split())}") from error
    if config.data.image_size % model.downsampling:
        raise ConfigError(
            f"data.image_size: must be a multiple of {model.downsampling} for "
            f"{config.model.name}, got {config.data.image_size}"
        )
    return model


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def _versions() -> dict[str, str]:
    return {
        "qkformer": qkformer.__version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "spikingjelly": version("spikingjelly"),
        "python": platform.python_version(),
    }
