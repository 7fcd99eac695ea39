"""The command lines of train.py and test.py: options, a YAML file, and keys that override it.

What jsonargparse finds wrong is said in one line that names the key and the nearest valid one.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from qkformer.training.config import SECTIONS, Config, ConfigError, key_types, nearest

# Besides --config: what they take, as --print_config writes them into a file too.
TRAIN_OPTIONS = {"output": str, "device": str, "resume": str}
TEST_OPTIONS = {
    "output": str,
    "device": str,
    "weights": str,
    "ssa": str,
    "input_size": int,
    "time_steps": int,
}
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
    options = TestOptions(given.checkpoint, output, parsed.device, parsed.ssa, parsed.weights)
    return _config(parsed), options


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
        for file in given.config:
            _check_file(file, options)
        files = [part for file in given.config for part in ("--config", str(file))]
        return parser.parse_args([*files, *rest]), given
    except argparse.ArgumentError as error:
        _explain(error, options, paths)


def _config(parsed: Namespace) -> Config:
    """Build the sections one by one, so that what one refuses gets its section's name."""
    for key, kind in key_types().items():  # jsonargparse lets null pass where there is a default
        if parsed[key] is None and NoneType not in get_args(kind):
            raise ConfigError(f"{key}: expected {_in_words(kind)}, got null")
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


def _check_file(file: Path, options: dict[str, type]) -> None:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not a text file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected 'key: value' lines")
    for key, value in content.items():
        _check_key(file, str(key), options)
        if key in SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{file}: {key}: expected keys below it, got {value!r}")
            for inner in value:
                _check_key(file, f"{key}.{inner}", options)


def _check_key(file: Path, key: str, options: dict[str, type]) -> None:
    valid = [*options, *key_types()]
    if key not in valid:
        reason = _elsewhere(key) or f"unknown key {key!r}{nearest(key, valid)}"
        raise ConfigError(f"{file}: {reason}")


def _elsewhere(name: str) -> str:
    """What to say of an option that only the other command has; empty for other names."""
    commands = {"train.py": TRAIN_OPTIONS, "test.py": TEST_OPTIONS}
    having = [command for command, options in commands.items() if name in options]
    return f"{name}: is an option of {having[0]} only" if having else ""


def _explain(
    error: argparse.ArgumentError, options: dict[str, type], paths: Sequence[str]
) -> NoReturn:
    """jsonargparse's complaint as one line; unknown options with the nearest valid name."""
    message = " ".join(str(error).split())
    unknown = re.search(r"unrecognized arguments: ([^\s=]+)", message)
    if unknown:
        valid = [f"--{key}" for key in ("config", *options, *paths, *key_types())]
        question, name = nearest(unknown[1], valid), unknown[1].lstrip("-")
        if _elsewhere(name) and f".{name}'" not in question:  # --ssa can also mean --model.ssa
            raise ConfigError(f"--{_elsewhere(name)}") from error
        raise ConfigError(f"unknown option {unknown[1]}{question}") from error
    wrong_type = re.match(r'Parser key "([^"]+)": (.*)', message)
    kinds = options | key_types()
    if wrong_type and wrong_type[1] in kinds:
        key, detail = wrong_type.groups()
        value = re.search(r"(?:Got value|Given value): (.*)", detail)
        got = f", got {value[1]}" if value else ""
        raise ConfigError(f"{key}: expected {_in_words(kinds[key])}{got}") from error
    raise ConfigError(message) from error


def _in_words(kind: Any) -> str:
    """A key's type for people: int | None -> "int or null"."""
    if kind in SECTIONS.values():
        return "keys below it"
    if kind is NoneType:
        return "null"
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if NoneType in get_args(kind):
        return " or ".join(map(_in_words, get_args(kind)))
    if get_origin(kind) is dict:
        return "{key: value, ...}"
    return str(kind) if get_args(kind) else kind.__name__


def _options_given(argv: Sequence[str] | None) -> list[str]:
    arguments = sys.argv[1:] if argv is None else argv
    return [part[2:].partition("=")[0] for part in arguments if part.startswith("--")]
