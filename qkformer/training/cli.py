"""The command lines of train.py and test.py: options, a YAML file, and keys that override it.

What jsonargparse finds wrong is said in one line that names the key and the nearest valid one.
"""

import argparse
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

OPTIONS = ("config", "output", "device", "resume", "checkpoint")
TESTED_SECTIONS = ("model", "data")


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
    parsed, files = _parse(parser, default_config, argv)
    output = Path(parsed.output or Path("runs") / files[-1].stem)
    return _config(parsed), TrainOptions(output, parsed.resume, parsed.device)


def parse_test(
    default_config: Path, argv: Sequence[str] | None = None
) -> tuple[Config, TestOptions]:
    """Command line of test.py, which reads the same files but acts on `model` and `data` alone.

    Raises:
        ConfigError: as parse_train; and a key of another section on the command line.
    """
    parser = _parser(
        "Test a checkpoint. Of the configuration, model.* and data.* act.",
        "--checkpoint PATH [--output DIR] [--device auto|cpu|cuda]",
    )
    parser.add_argument(
        "--checkpoint", metavar="PATH", type=str | None, help="Checkpoint to test (required)."
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=str | None,
        help="Folder of results.json (default: the checkpoint's).",
    )
    _add_shared(parser)
    for key in _options_given(argv):
        section = key.partition(".")[0]
        if section in Config.__dataclass_fields__ and section not in TESTED_SECTIONS:
            raise ConfigError(f"--{key}: acts in training only")
    parsed, _ = _parse(parser, default_config, argv)
    if parsed.checkpoint is None:
        raise ConfigError("--checkpoint: required, the file to test")
    checkpoint = Path(parsed.checkpoint)
    output = Path(parsed.output or checkpoint.parent)
    return _config(parsed), TestOptions(checkpoint, output, parsed.device)


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
    parser: ArgumentParser, default_config: Path, argv: Sequence[str] | None
) -> tuple[Namespace, list[Path]]:
    files_only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    files_only.add_argument("--config", action="append", type=Path)
    try:
        given, rest = files_only.parse_known_args(argv)
        files = given.config or [Path(default_config)]
        for file in files:
            _check_file(file)
        options = [part for file in files for part in ("--config", str(file))]
        return parser.parse_args([*options, *rest]), files
    except argparse.ArgumentError as error:
        _explain(error)


def _config(parsed: Namespace) -> Config:
    """Build the sections one by one, so that what one refuses gets its section's name."""
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


def _check_file(file: Path) -> None:
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
        _check_key(file, str(key))
        if key in SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{file}: {key}: expected keys below it, got {value!r}")
            for inner in value:
                _check_key(file, f"{key}.{inner}")


def _check_key(file: Path, key: str) -> None:
    valid = [*OPTIONS, *key_types()]
    if key not in valid:
        raise ConfigError(f"{file}: unknown key {key!r}{nearest(key, valid)}")


def _explain(error: argparse.ArgumentError) -> NoReturn:
    """jsonargparse's complaint as one line; unknown options with the nearest valid name."""
    message = " ".join(str(error).split())
    unknown = re.search(r"unrecognized arguments: ([^\s=]+)", message)
    if unknown:
        valid = [f"--{key}" for key in (*OPTIONS, *key_types())]
        raise ConfigError(f"unknown option {unknown[1]}{nearest(unknown[1], valid)}") from error
    wrong_type = re.match(r'Parser key "([^"]+)": (.*)', message)
    if wrong_type and wrong_type[1] in key_types():
        key, detail = wrong_type.groups()
        value = re.search(r"(?:Got value|Given value): (.*)", detail)
        got = f", got {value[1]}" if value else ""
        raise ConfigError(f"{key}: expected {_in_words(key_types()[key])}{got}") from error
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
