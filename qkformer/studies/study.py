"""What a study is: a YAML file of named variants over a base configuration."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from qkformer.files import FileError, write_text
from qkformer.text import did_you_mean
from qkformer.training.config import Config, ConfigError
from qkformer.training.config_file import (
    assign,
    build,
    load_yaml,
    naming,
    read_config,
    shown,
    typed,
)

FILE = "study.json"  # in the folder of a study: what its table needs to know


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Attributes:
        name: Of its folder.
        title: What tables and pictures call it.
        group: What it varies, a heading in tables.
        published: Accuracy in percent that a publication reports of it, if any.
        keys: Of the configuration, in dotted form, with their values.
    """

    name: str
    title: str
    group: str | None = None
    published: float | None = None
    keys: dict[str, Any] = field(default_factory=dict)

    def config(self, seed: int) -> Config:
        """Its configuration with the seed-th seed behind the base's own.

        Raises:
            ConfigError: an impossible value, with the variant's name.
        """
        with naming(f"variant {self.name}"):
            config = build(self.keys)
            return build(self.keys | {"seed": config.seed + seed})


@dataclass(frozen=True)
class Retests:
    """How else the trained models are tested: every attention with every batch size.

    Attributes:
        ssa: Attentions, fixed or original, whichever a model was trained with.
        batch_size: Samples per batch, which under ssa="original" is part of the result.

    Raises:
        ConfigError: anything else, or nothing.
    """

    ssa: list[str]
    batch_size: list[int]

    def __post_init__(self) -> None:
        if not _list_of(self.ssa, lambda mode: mode in ("fixed", "original")):
            raise ConfigError(f"ssa: expected a list of fixed, original, got {shown(self.ssa)}")
        if not _list_of(self.batch_size, lambda size: type(size) is int and size > 0):
            raise ConfigError(
                f"batch_size: expected a list of numbers from 1, got {shown(self.batch_size)}"
            )

    def all(self) -> Iterator[tuple[str, int]]:
        """Pairs of attention and batch size."""
        return product(self.ssa, self.batch_size)


def _list_of(values: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and bool(values) and all(map(fits, values))


@dataclass(frozen=True)
class Study:
    """Variants to compare.

    Attributes:
        title: A sentence.
        published: Of what the published accuracies are; None without any.
        retests: In addition to those behind every epoch.
    """

    title: str
    variants: list[Variant]
    published: str | None = None
    retests: Retests | None = None

    def save(self, folder: Path) -> None:
        """Write what a table of this study says, without the configurations."""
        known = asdict(self)
        for variant in known["variants"]:
            del variant["keys"]
        write_text(folder / FILE, json.dumps(known, indent=1) + "\n")

    @staticmethod
    def saved(folder: Path) -> "Study":
        """What `save` wrote.

        Raises:
            FileError: there is none, or it is another kind of file.
        """
        try:
            known = json.loads((folder / FILE).read_text())
            variants = [Variant(**each) for each in known.pop("variants")]
            retests = known.pop("retests")
            return Study(variants=variants, retests=retests and Retests(**retests), **known)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FileError(f"{folder}: no folder of a study ({type(error).__name__})") from error


def read_study(path: Path) -> Study:
    """A study's file: `title`, `base` and `variants`; `set`, `retests` and `published` if need be.

    A variant has a `title`, and if need be a `group`, a `published` accuracy, a `base` of its own,
    and under `set` what it changes. Keys of `set` are those of a configuration, also in dotted
    form, which leaves the other arguments of the model as they are: `model.args.mixers: [...]`. The
    study's own `set` comes before a variant's. `base` is relative to the file.

    Raises:
        ConfigError: the file cannot be read, or says what no study has.
    """
    path = Path(path)
    with naming(path):
        content = _checked(load_yaml(path), _STUDY, ("title", "base", "variants"))
        variants = []
        for name, entry in content["variants"].items():
            with naming(f"variant {name}"):
                if not isinstance(name, str) or not name.replace("_", "").isalnum():
                    raise ConfigError("expected a name of letters, digits and _, for its folder")
                entry = _checked(entry, _VARIANT, ("title",))
                keys = read_config(path.parent / entry.pop("base", content["base"]))
                for key, value in (content.get("set", {}) | entry.pop("set", {})).items():
                    assign(keys, str(key), value)
            variants.append(Variant(name, keys=keys, **entry))
            variants[-1].config(0)
        if not variants:
            raise ConfigError("variants: expected at least one")
        return Study(
            title=content["title"],
            variants=variants,
            published=content.get("published"),
            retests=_retests(content["retests"]) if "retests" in content else None,
        )


def _retests(entry: dict[str, Any]) -> Retests:
    with naming("retests"):
        return Retests(**_checked(entry, _RETESTS, tuple(_RETESTS)))


_RETESTS = {part.name: Any for part in fields(Retests)}
_VARIANT = {"title": str, "group": str, "published": float, "base": str, "set": dict[str, Any]}
_STUDY = {"title": str, "base": str, "variants": dict[str, Any], "set": dict[str, Any],
          "retests": dict[str, Any], "published": str}  # fmt: skip


def _checked(entry: Any, known: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ConfigError(f"expected keys below it: {', '.join(known)}")
    for key in entry:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}{did_you_mean(key, known)}")
    for key in required:
        if key not in entry:
            raise ConfigError(f"{key}: required")
    return {key: typed(key, value, known[key]) for key, value in entry.items()}
