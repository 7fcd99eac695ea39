"""Configurations as text: YAML files, the bases they stand on, and the types of what they say.

What is read becomes a flat dict, from keys in dotted form to values of the right type.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

import qkformer
from qkformer.text import did_you_mean, one_line
from qkformer.training.config import DEFAULTS, KEYS, SECTIONS, Config, ConfigError

_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's own would silently take the last value."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ConfigError(
                    f"line {line}: key {key.value!r} is given in line {lines[key.value]} already, "
                    "remove one of them"
                )
            lines[key.value] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes words that the loader would take for numbers."""


for _dialect in (_Loader, _Dumper):  # 1e-3 is a number, which PyYAML takes for a word
    _dialect.add_implicit_resolver(*_FLOAT)


def read_config(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys that a YAML file sets, and below them those of its base.

    Args:
        path: Its key `base` names another file, relative to its own folder.
        above: The files that stand on this one, the first of them foremost.

    Raises:
        ConfigError: a file cannot be read or stands on itself, or a key is there twice, does not
            exist or has a value of another type.
    """
    if path.resolve() in [other.resolve() for other in above]:
        raise ConfigError(f"{' -> '.join(map(str, [*above, path]))}: no file can be its own base")
    with naming(f"{path}, the base of {above[-1]}" if above else str(path)):
        content = load_yaml(path)
        base = content.pop("base", None)
        if not isinstance(base, str | NoneType):
            raise ConfigError(f"base: expected the path of a file, got {shown(base)}")
    values = read_config(path.parent / base, (*above, path)) if base else {}
    with naming(path):
        for key, value in content.items():
            assign(values, str(key), value)
    return values


def find_config(path: Path) -> Path:
    """The file; or where there is none, the one of this name among those that come along."""
    found = configs_folder() / path
    return found if not path.exists() and found.is_file() else path


def configs_folder() -> Path:
    """Where this package's configurations are: beside it in the repository, in it in a wheel."""
    package = Path(qkformer.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def load_yaml(path: Path) -> dict[Any, Any]:
    """A YAML file of keys and values.

    Raises:
        ConfigError: it cannot be read, or has a key twice.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, _Loader)
    except OSError as error:
        raise ConfigError(error.strerror) from error
    except UnicodeDecodeError as error:
        raise ConfigError("not a text file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError("expected 'key: value' lines")
    return content


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Say of which file an error is.

    Raises:
        ConfigError: as it was, but for the name before it.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, all that is given of a section, or an entry of model.args or optimizer.args.

    Raises:
        ConfigError: there is no such key, or the value is of another type.
    """
    if key in SECTIONS:
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: expected keys below it, got {shown(value)}")
        for inner, part in value.items():
            assign(values, f"{key}.{inner}", part)
    elif (whole := whole_of(key)) is not None:
        name = key.removeprefix(f"{whole}.")
        values[whole] = {**values.get(whole, {}), name: value}
    elif key in KEYS:
        values[key] = typed(key, value, KEYS[key])
    else:
        raise ConfigError(f"unknown key {key!r}{did_you_mean(key, [*SECTIONS, *KEYS])}")


def whole_of(key: str) -> str | None:
    """model.args for model.args.depths; None for what is no entry of such a key."""
    section, _, name = key.partition(".args.")
    return f"{section}.args" if name and f"{section}.args" in KEYS else None


def from_text(text: str, kind: Any = Any) -> Any:
    """What is meant on a command line: as in YAML, but a path or a name may be any text."""
    if kind in (str, Path) or (kind == str | None and text != "null"):
        return text
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def typed(name: str, value: Any, kind: Any) -> Any:
    """The value as a `kind`: an int for a float, a list for a tuple, nothing else in between.

    Raises:
        ConfigError: with the name, what is expected and what is there.
    """
    try:
        return _convert(value, kind)
    except (TypeError, OverflowError) as error:
        raise ConfigError(f"{name}: expected {in_words(kind)}, got {shown(value)}") from error


def _convert(value: Any, kind: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any or type(value) is kind:  # where True is no 1
        return value
    if (kind, type(value)) in ((float, int), (Path, str)):
        return kind(value)
    if origin is dict and isinstance(value, dict):
        return value
    if origin is Literal and isinstance(value, str) and value in parts:
        return value
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(parts):
        return tuple(map(_convert, value, parts))
    if origin in (Union, UnionType):
        for part in parts:
            with suppress(TypeError):
                return _convert(value, part)
    raise TypeError


def in_words(kind: Any) -> str:
    """A key's type for people: int | None -> "int or null"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(parts)
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, parts))
    if origin is tuple:
        return f"[{', '.join(map(in_words, parts))}]"
    if origin is dict:
        return "{key: value, ...}"
    return "null" if kind is NoneType else kind.__name__.lower()


def shown(value: Any) -> str:
    """A value as a YAML file has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


def build(values: dict[str, Any]) -> Config:
    """The configuration of these keys and of the defaults of others.

    Raises:
        ConfigError: keys without a default are missing, or a value is impossible.
    """
    missing = [key for key in KEYS if key not in {**DEFAULTS, **values}]
    if missing:
        raise ConfigError(f"not given, but required: {', '.join(missing)}")
    parts = {key: value for key, value in values.items() if "." not in key}
    prefix = ""
    try:
        for name, section in SECTIONS.items():
            prefix = f"{name}."
            own = {key: value for key, value in values.items() if key.startswith(prefix)}
            parts[name] = section(**{key.removeprefix(prefix): own[key] for key in own})
        prefix = ""
        return Config(**parts)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


def to_yaml(config: Config, keys: Collection[str] = KEYS) -> str:
    """The resolved configuration, or these keys of it, to be read again with --config."""
    plain, tree = asdict(config), {}
    for key in keys:
        section, _, name = key.rpartition(".")
        source, place = (plain[section], tree.setdefault(section, {})) if section else (plain, tree)
        value = source[name]
        place[name] = list(value) if isinstance(value, tuple) else value  # YAML has no tuples
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
