"""The command lines of train.py and test.py: options, a YAML file, and keys that override it.

What jsonargparse finds wrong is said in one line that names the key and the nearest valid one.
"""

import argparse
import glob
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import NoReturn, get_args

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from qkformer.training.complaints import (
    TEST_OPTIONS,
    TRAIN_OPTIONS,
    check_file,
    explain,
    in_words,
)
from qkformer.training.config import SECTIONS, Config, ConfigError, key_types

TESTED_SECTIONS = ("model", "data", "compute")
TRAINING_ONLY = (  # of these sections
    "model.weights",
    "model.skip_head",
    "model.drop_path_rate",
    "data.val_fraction",
    "compute.grad_checkpointing",
    "compute.sync_batchnorm",
)


@dataclass(frozen=True)
class TrainOptions:
    """What train.py was told besides the configuration."""

    output: Path
    resume: str
    device: str


@dataclass(frozen=True)
class TestOptions:
    """What test.py was told besides the configuration."""

    checkpoint: Path
    output: Path
    device: str
    ssa: str | None
    weights: str
    time_steps: int | None


def parse_train(
    default_config: Path, argv: Sequence[str] | None = None
) -> tuple[Config, TrainOptions]:
    """Command line of train.py; `argv` is sys.argv[1:] unless given.

    Raises:
        ConfigError: an unknown key, a wrong type, an impossible value, an unreadable file.
    """
    parser = _parser(
        "Train a model.", "[--output DIR] [--resume auto|none|PATH] [--device auto|cpu|cuda]"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=str | None,
        help="Folder of the run (default: runs/NAME, for a configuration in NAME.yml).",
    )
    parser.add_argument(
        "--resume",
        metavar="auto|none|PATH",
        default="auto",
        help="auto: continue the run in the output folder, if there is one; none: start anew, in "
        "a folder without a run; a path: continue from that checkpoint.",
    )
    _add_shared(parser)
    parsed, given = _parse(parser, TRAIN_OPTIONS, default_config, argv)
    output = Path(parsed.output or Path("runs") / given.config[-1].stem)
    return _config(parsed), TrainOptions(output, parsed.resume, parsed.device)


def parse_test(
    default_config: Path, argv: Sequence[str] | None = None
) -> tuple[Config, TestOptions]:
    """Command line of test.py, which reads the same files but acts on `model` and `data` alone.

    Raises:
        ConfigError: as parse_train; and a key of another section on the command line.
    """
    parser = _parser(
        "Test the checkpoint at --checkpoint PATH. Of the configuration, model.*, data.* and "
        "compute.* act.",
        "--checkpoint PATH [--output DIR] [--ssa MODE] [--input_size N] [--time_steps T] "
        "[--weights trained|ema] [--device auto|cpu|cuda]",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=str | None,
        help="Folder of results.json (default: the checkpoint's).",
    )
    parser.add_argument(
        "--ssa",
        choices=["fixed", "original", "both"],
        help="Spiking self-attention, in place of model.ssa: original has the published leak "
        "between the samples of a batch; both tests one after the other.",
    )
    parser.add_argument(
        "--input_size",
        metavar="N",
        type=int | None,
        help="Height and width in pixels, in place of data.image_size.",
    )
    parser.add_argument(
        "--time_steps", metavar="T", type=int | None, help="Time steps, in place of model.T."
    )
    parser.add_argument(
        "--weights",
        default="trained",
        choices=["trained", "ema"],
        help="ema: the running mean that training with optimizer.ema_decay keeps.",
    )
    _add_shared(parser)
    for key in _options_given(argv):
        section = key.partition(".")[0]
        acts = section not in Config.__dataclass_fields__ or section in TESTED_SECTIONS
        if (key != "checkpoint" and not acts) or key in TRAINING_ONLY:
            raise ConfigError(f"--{key}: acts in training only")
    parsed, given = _parse(parser, TEST_OPTIONS, default_config, argv, "checkpoint")
    if parsed.input_size is not None:
        parsed["data.image_size"] = parsed.input_size
    if parsed.time_steps is not None:
        parsed["model.T"] = parsed.time_steps
    if given.checkpoint is None:
        raise ConfigError("--checkpoint: required, the file to test")
    output = Path(parsed.output or given.checkpoint.parent)
    return _config(parsed), TestOptions(
        given.checkpoint,
        output,
        parsed.device,
        parsed.ssa,
        parsed.weights,
        parsed.time_steps,
    )


def _parser(description: str, options: str) -> ArgumentParser:
    parser = ArgumentParser(
        usage=f"%(prog)s [--config FILE] {options} [--KEY VALUE ...]",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action=ActionConfigFile,
        help="YAML file in place of the default one; given twice, the later one overrides.",
    )
    return parser


def _add_shared(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        choices=["auto", "cpu", "cuda"],
        help="auto takes CUDA where there is one.",
    )
    parser.add_class_arguments(Config)


def _parse(
    parser: ArgumentParser,
    options: dict[str, type],
    default_config: Path,
    argv: Sequence[str] | None,
    *paths: str,
) -> tuple[Namespace, argparse.Namespace]:
    """What the parser makes of the command line, and the options that it does not see.

    These are the files (their keys are checked first), the launcher's --local-rank, and `paths`,
    which have the name of a section.
    """
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    before.add_argument("--config", action="append", type=Path)
    before.add_argument("--local-rank", "--local_rank", type=int)
    for name in paths:
        before.add_argument(f"--{name}", type=Path)
    try:
        given, rest = before.parse_known_args(argv)
        _check_local_rank(given.local_rank)
        given.config = given.config or [Path(default_config)]
        wants_help = not {"-h", "--help"}.isdisjoint(rest)
        for file in given.config:
            if file.exists() or not wants_help:
                check_file(file, options)
        if wants_help:
            _help(parser, given.config)
        files = [part for file in given.config for part in ("--config", str(file))]
        return parser.parse_args([*files, *rest]), given
    except argparse.ArgumentError as error:
        explain(error, options, paths)


def _help(parser: ArgumentParser, files: list[Path]) -> NoReturn:
    """Explain every key, with the value that the files give it where they exist."""
    # Not for parsing: one file is read in place of the default one, not on top of it.
    parser.default_config_files = [glob.escape(str(file)) for file in files]
    try:
        parser.print_help()
    except TypeError as error:  # a wrong value in a file, which parsing reports in the other way
        raise argparse.ArgumentError(None, str(error)) from error
    parser.exit()


def _config(parsed: Namespace) -> Config:
    """Build the sections one by one, so that what one refuses gets its section's name."""
    for key, kind in key_types().items():  # jsonargparse lets null pass where there is a default
        if parsed[key] is None and NoneType not in get_args(kind):
            raise ConfigError(f"{key}: expected {in_words(kind)}, got null")
    values = {key: parsed[key] for key in Config.__dataclass_fields__}
    prefix = ""
    try:
        for name, section in SECTIONS.items():
            prefix = f"{name}."
            values[name] = section(**vars(values[name]))
        prefix = ""
        return Config(**values)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _check_local_rank(given: int | None) -> None:
    """torch.distributed.launch passes --local-rank and sets LOCAL_RANK, from which it is taken."""
    if given is not None and os.environ.get("LOCAL_RANK") != str(given):
        raise ConfigError(
            f"--local-rank {given}: is for launchers that set LOCAL_RANK to the same; start with "
            "torchrun or python -m torch.distributed.launch"
        )


def _options_given(argv: Sequence[str] | None) -> list[str]:
    arguments = sys.argv[1:] if argv is None else argv
    return [part[2:].partition("=")[0] for part in arguments if part.startswith("--")]
