"""What is wrong with a command line or a configuration file, in one line."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml

from qkformer.text import one_line
from qkformer.training.config import SECTIONS, ConfigError, key_types, nearest

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


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's own would silently take the last value."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ConfigError(
                    f"{self.name}: line {line}: key {key.value!r} is given in line "
                    f"{lines[key.value]} already, remove one of them"
                )
            lines[key.value] = line
        return node


def check_file(file: Path, options: dict[str, type]) -> None:
    """Refuse a configuration that cannot be read, or has keys twice or that do not exist.

    Args:
        file: YAML.
        options: Of the command, allowed beside the configuration's keys.

    Raises:
        ConfigError: with the nearest valid name of an unknown key.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            content = yaml.load(stream, _UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not a text file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {one_line(error)}") from error
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


def explain(
    error: argparse.ArgumentError, options: dict[str, type], paths: Sequence[str]
) -> NoReturn:
    """jsonargparse's complaint as one line; unknown options with the nearest valid name."""
    message = one_line(error)
    unknown = re.search(r"unrecognized arguments: ([^\s=]+)", message)
    if unknown:
        valid = [f"--{key}" for key in ("config", "print_config", *options, *paths, *key_types())]
        question, name = nearest(unknown[1], valid), unknown[1].lstrip("-")
        if _elsewhere(name) and f".{name}'" not in question:  # --ssa can also mean --model.ssa
            raise ConfigError(f"--{_elsewhere(name)}") from error
        raise ConfigError(f"unknown option {unknown[1]}{question}") from error
    wrong_type = re.match(r'Parser key "([^"]+)": (.*)', message)
    kinds = options | key_types()
    if wrong_type and wrong_type[1] in kinds:
        key, detail = wrong_type.groups()
        # of a union, each part has its complaint first, and the value comes last
        value = re.search(r"Given value: (.*)", detail) or re.search(r"Got value: (.*)", detail)
        got = f", got {value[1]}" if value else ""
        raise ConfigError(f"{key}: expected {in_words(kinds[key])}{got}") from error
    raise ConfigError(message) from error


def in_words(kind: Any) -> str:
    """A key's type for people: int | None -> "int or null"."""
    if kind in SECTIONS.values():
        return "keys below it"
    if kind is NoneType:
        return "null"
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if NoneType in get_args(kind):
        return " or ".join(map(in_words, get_args(kind)))
    if get_origin(kind) is dict:
        return "{key: value, ...}"
    return str(kind) if get_args(kind) else kind.__name__
