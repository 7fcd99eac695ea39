"""A configuration and a checkpoint as test.py reads them: the one place that knows how."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from qkformer.data.loaders import read
from qkformer.data.registry import Data
from qkformer.data.source import DataError
from qkformer.text import one_line
from qkformer.training.command_line import TestOptions, parse_test
from qkformer.training.config import Config, ConfigError
from qkformer.training.distributed import World, announced, joined
from qkformer.training.environment import choose_device
from qkformer.training.evaluate import check_tested, load_tested, load_tests, tested_configs


@dataclass(frozen=True)
class Source:
    """A model with its weights, and the test data.

    Attributes:
        model: in evaluation mode, on the device, in float32.
        config: as it was read.
        data: the data set, with ``prepare`` on the device.
        checkpoint: the file of the weights.
        output: folder for what is written.
        world: the processes.
        batches: a new pass over this process's share of the test set: inputs of the model and
            class indices.
    """

    model: nn.Module
    config: Config
    data: Data
    checkpoint: Path
    output: Path
    world: World
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]

    @property
    def ssa(self) -> str | None:
        """Which spiking self-attention: fixed or original; None where there is none."""
        return getattr(self.model, "ssa", None)

    def images(self, files: Sequence[str]) -> Tensor:
        """Pictures as the test set's would enter the model: [B, C, H, W].

        Raises:
            DataError: one cannot be read, or the model takes event frames.
        """
        transform = self.data.test.transform
        if transform is None:
            raise DataError("--images: the model takes event frames; use --samples")
        mode = "L" if self.data.in_chans == 1 else "RGB"
        samples = []
        for file in files:
            try:
                with Image.open(file) as image:
                    samples.append(transform(image.convert(mode)))
            except OSError as error:
                raise DataError(f"--images: cannot read {file}: {one_line(error)}") from error
        device = next(self.model.parameters()).device
        return self.data.prepare(torch.stack(samples).to(device))


@contextmanager
def opened(argv: Sequence[str]) -> Iterator[Source]:
    """Read test.py's command line, and everything that it names.

    Without --config it is the config.yml beside the checkpoint, which every run has.

    Raises:
        ConfigError, DataError, FileError: something given is wrong.
    """
    config, options = told(argv)
    alone = announced()
    device = choose_device(options.device, alone)
    with joined(alone, device) as world:
        world.say(*check_tested([config], options))
        data, loader = load_tests(config, device, world)
        model, _ = load_tested(config, options, data, device)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in read(loader, config.data.on_damaged):
                yield data.prepare(batch.samples.to(device)), batch.targets

        yield Source(
            model.eval(),
            config,
            data,
            options.checkpoint,
            options.output,
            world,
            batches,
        )


def told(argv: Sequence[str]) -> tuple[Config, TestOptions]:
    """test.py's command line; the configuration is the one to test.

    Raises:
        ConfigError, FileError: something given is wrong.
    """
    config, options = parse_test(_config_beside(argv), argv)
    if options.ssa == "both":
        raise ConfigError("--ssa both: is for test.py; choose one")
    (config,) = tested_configs(config, options.ssa)
    return config, options


def _config_beside(argv: Sequence[str]) -> Path:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--checkpoint", type=Path)
    try:
        known, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(one_line(error)) from error
    if known.checkpoint is None:
        raise ConfigError("--checkpoint: required, the file to read")
    if not known.checkpoint.exists():
        raise ConfigError(f"--checkpoint {known.checkpoint}: no such file")
    beside = known.checkpoint.parent / "config.yml"
    if not beside.exists() and not any(part.split("=")[0] == "--config" for part in argv):
        raise ConfigError(f"--config: required, there is no {beside}")
    return beside
