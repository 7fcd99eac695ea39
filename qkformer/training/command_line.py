"""The command lines of train.py and test.py: options, YAML files, and keys that override them."""

import inspect
import os
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from qkformer.checkpoint.content import recorded_config
from qkformer.checkpoint.io import file_md5, read_checkpoint
from qkformer.checkpoint.load import KNOWN_FILES
from qkformer.text import did_you_mean, some_of
from qkformer.training.config import DEFAULTS, KEYS, SECTIONS, Config, ConfigError
from qkformer.training.config_file import (
    assign,
    build,
    configs_folder,
    find_config,
    from_text,
    in_words,
    naming,
    read_config,
    shown,
    to_yaml,
    typed,
    whole_of,
)

TESTED_SECTIONS = ("model.", "data.", "compute.")
TRAINING_ONLY = (  # of these sections
    "model.weights",
    "model.skip_head",
    "model.drop_path_rate",
    "data.val_fraction",
    "compute.cuda_graph",
    "compute.grad_checkpointing",
    "compute.sync_batchnorm",
)
_LAUNCHER = ("local-rank", "local_rank")


@dataclass(frozen=True)
class TrainOptions:
    """What train.py was told besides the configuration.

    Args:
        output: Folder of the run; runs/NAME for a configuration in NAME.yml, unless given.
        resume: auto: continue the run in the output folder, if there is one; none: start anew, in a
            folder without a run; a path: continue from that checkpoint.
        device: auto takes CUDA where there is one.
        dry_run: Check everything, take two steps and two batches of every test, estimate memory and
            time, and leave nothing behind but prepared data.
    """

    output: Path
    resume: str = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dry_run: bool = False


@dataclass(frozen=True)
class TestOptions:
    """What test.py was told besides the configuration.

    Args:
        checkpoint: The file to test, ours or published.
        output: Folder of results.json; the checkpoint's unless given.
        device: auto takes CUDA where there is one.
        ssa: Spiking self-attention, in place of model.ssa: original has the published leak between
            the samples of a batch; both tests one after the other.
        weights: ema: the running mean that training with optimizer.ema_decay keeps.
        time_steps: Time steps, in place of model.T.
        input_size: Height and width in pixels, in place of data.image_size.
        quantize: int8: weights rounded to integers of 8 bits with a scale for every output channel.

    Attributes:
        source: From where the configuration comes, a line for people.
    """

    checkpoint: Path
    output: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ssa: Literal["fixed", "original", "both"] | None = None
    weights: Literal["trained", "ema"] = "trained"
    time_steps: int | None = None
    input_size: int | None = None
    quantize: Literal["int8"] | None = None
    source: str = ""


def parse_train(
    default_config: Path | None, argv: Sequence[str] | None = None
) -> tuple[Config, TrainOptions]:
    """Command line of train.py; `argv` is sys.argv[1:] unless given.

    Args:
        default_config: None where a file has to be named.

    Raises:
        ConfigError: an unknown key, a wrong type, an impossible value, an unreadable file.
    """
    line = _CommandLine(TrainOptions, KEYS, argv)
    files = line.files or ([Path(default_config)] if default_config else [])
    if not files and not line.wants_help:
        raise ConfigError(f"--config: required, a file, or the name of one in {configs_folder()}")
    config = line.configure(line.read(files))
    return config, TrainOptions(**{"output": Path("runs") / files[-1].stem} | line.options)


def parse_test(
    default_config: Path, argv: Sequence[str] | None = None
) -> tuple[Config, TestOptions]:
    """Command line of test.py: of the configuration, `model`, `data` and `compute` act.

    They come from the files given, else from the checkpoint if it is our own, else from the default
    file. What acts in training alone is the default file's or has its default.

    Raises:
        ConfigError: as parse_train; and a key on the command line that does not act.
        CheckpointError: the checkpoint cannot be read.
    """
    line = _test_line(argv)
    checkpoint = line.options.get("checkpoint")
    default = line.read([Path(default_config)])
    tested, source = default, str(default_config)
    if line.files:
        tested, source = line.read(line.files), " and ".join(map(str, line.files))
    elif checkpoint and not line.wants_help:
        tested, source = _recorded(checkpoint, line.acting) or (tested, source)
    values = {key: default[key] for key in default if not key.startswith(TESTED_SECTIONS)}
    values |= {key: tested[key] for key in tested if _acts_in_testing(key)}
    return _test_options(line, values, source)


def parse_trained(argv: Sequence[str] | None = None) -> tuple[Config, TestOptions]:
    """The same for commands that are not of one data set: there is no default file.

    Everything comes from the files given, else from the checkpoint; of a published file the md5
    says which configuration it is of.

    Raises:
        ConfigError: as parse_test; and there is no configuration.
        CheckpointError: the checkpoint cannot be read.
    """
    line = _test_line(argv)
    checkpoint = line.options.get("checkpoint")
    if not checkpoint and not line.wants_help:
        raise ConfigError("--checkpoint: required, the file to read")
    values, source = line.read(line.files), " and ".join(map(str, line.files))
    if not line.files and not line.wants_help:
        values, source = _recorded(checkpoint, KEYS) or _known(checkpoint)
    return _test_options(line, values, source)


def _test_line(argv: Sequence[str] | None) -> "_CommandLine":
    line = _CommandLine(TestOptions, list(filter(_acts_in_testing, KEYS)), argv)
    for key in line.keys:
        if not _acts_in_testing(key):
            raise ConfigError(f"--{key}: acts in training only")
    return line


def _test_options(
    line: "_CommandLine", values: dict[str, Any], source: str
) -> tuple[Config, TestOptions]:
    for option, key in (("input_size", "data.image_size"), ("time_steps", "model.T")):
        if line.options.get(option) is not None:
            line.keys[key] = line.options[option]
    checkpoint = line.options.get("checkpoint")
    config = line.configure(values)
    if checkpoint is None:
        raise ConfigError("--checkpoint: required, the file to test")
    beside = checkpoint if checkpoint.is_dir() else checkpoint.parent
    options = {"output": beside, "source": f"configuration: {source}"} | line.options
    return config, TestOptions(**options)


def _acts_in_testing(key: str) -> bool:
    return f"{key}.".startswith(TESTED_SECTIONS) and key not in TRAINING_ONLY


def _recorded(checkpoint: Path, wanted: Iterable[str]) -> tuple[dict[str, Any], str] | None:
    """What a checkpoint of ours was trained with, and what to say of it; None for others."""
    config = recorded_config(read_checkpoint(checkpoint, mmap=True))
    found = {key: value for key, value in config.items() if key not in SECTIONS}
    found |= {
        f"{section}.{name}": value
        for section in SECTIONS
        if isinstance(part := config.get(section), dict)
        for name, value in part.items()
    }
    if any(key not in {**DEFAULTS, **found} for key in KEYS if _acts_in_testing(key)):
        return None
    values: dict[str, Any] = {}
    with naming(checkpoint):
        for key in filter(found.__contains__, wanted):
            assign(values, key, found[key])
    unknown = [key for key in found if key not in KEYS and _acts_in_testing(key)]
    ignored = f"; this version has no {some_of(unknown)}" if unknown else ""
    return values, f"the one recorded in {checkpoint}{ignored}"


def _known(checkpoint: Path) -> tuple[dict[str, Any], str]:
    """The configuration of a published file that is known by its md5, and what to say of it."""
    known = KNOWN_FILES.get(file_md5(checkpoint))
    if known is None:
        raise ConfigError(
            f"--config: required, {checkpoint} records no configuration; there is one for every "
            "published run, as in --config imagenet_qkformer_10_384.yml"
        )
    return read_config(find_config(Path(known.config))), f"{known.config}, of {known.name}"


class _CommandLine:
    """A command line, taken apart.

    Args:
        kind: The class of the command's options.
        acting: Those keys of the configuration that the command heeds.
        argv: sys.argv[1:] unless given.

    Attributes:
        options: By name.
        files: Of --config, one after the other.
        keys: Of the configuration, with what is given for them, in this order.
    """

    def __init__(self, kind: type, acting: Collection[str], argv: Sequence[str] | None) -> None:
        self.acting, self.known = acting, _options(kind)
        self.options: dict[str, Any] = {}
        self.files: list[Path] = []
        self.keys: dict[str, Any] = {}
        parts = iter(sys.argv[1:] if argv is None else argv)
        for part in parts:
            part = "--help" if part == "-h" else part
            name, equals, text = part.removeprefix("--").partition("=")
            if not part.startswith("--"):
                raise ConfigError(f"unexpected argument {part!r}")
            self._check_name(name)
            expected, _ = self.known.get(name, (KEYS.get(name, Any), ""))
            if expected is None:
                text = "true"
                if equals:
                    raise ConfigError(f"--{name}: takes no value")
            elif not equals:
                text = next(parts, "--")
                if text.startswith("--"):
                    raise ConfigError(f"--{name}: expected one argument")
            if name == "config":
                self.files.append(Path(text))
            elif name in _LAUNCHER:
                _check_local_rank(text)
            elif name in self.known:
                self.options[name] = typed(f"--{name}", from_text(text, expected), expected or bool)
            else:
                given = _of_section(name, from_text(text, expected))
                # behind what it overrides
                self.keys = {k: v for k, v in self.keys.items() if k not in given} | given
        self.wants_help, self.wants_config = (
            self.options.pop(name, False) for name in ("help", "print_config")
        )

    def _check_name(self, name: str) -> None:
        known = [*self.known, *SECTIONS, *KEYS]
        if name in (*known, *_LAUNCHER) or whole_of(name):
            return
        question = did_you_mean(name, [f"--{each}" for each in known])
        for command, options in (("train.py", TrainOptions), ("test.py", TestOptions)):
            # --ssa can also mean --model.ssa
            if name in _options(options) and f".{name}'" not in question:
                raise ConfigError(f"--{name}: is an option of {command} only")
        raise ConfigError(f"unknown option --{name}{question}")

    def read(self, files: Iterable[Path]) -> dict[str, Any]:
        """The keys that YAML files set; help does without those that are missing."""
        values: dict[str, Any] = {}
        for file in files:
            file = find_config(file)
            if file.exists() or not self.wants_help:
                values |= read_config(file)
        return values

    def configure(self, values: dict[str, Any]) -> Config:
        """The configuration of these values, which the keys override; or print it, or help."""
        for key, value in self.keys.items():
            assign(values, key, value)
        if self.wants_help:
            self._help({**DEFAULTS, **values})
        config = build(values)
        if self.wants_config:
            print(to_yaml(config, self.acting), end="")
            raise SystemExit(0)
        return config

    def _help(self, values: dict[str, Any]) -> NoReturn:
        """Explain every option, and every key with its value."""
        texts = _arguments(Config)
        for name, section in SECTIONS.items():
            texts |= {f"{name}.{key}": text for key, text in _arguments(section).items()}
        keys = {key: (KEYS[key], texts[key]) for key in self.acting}
        print(f"usage: {Path(sys.argv[0]).name} [--OPTION ...] [--KEY VALUE ...]\n")
        for name, (kind, text) in (self.known | keys).items():
            head = f"--{name} {in_words(kind)}" if kind else f"--{name}"
            print(f"{head} = {shown(values[name])}" if name in values else head)
            print(textwrap.indent(textwrap.fill(text, 92), " " * 8))
        raise SystemExit(0)


def _options(kind: type) -> dict[str, tuple[Any, str]]:
    """Of a command: by name their types, None for those without a value, and explanations."""
    later = "given twice, the later one overrides key by key."
    options = {
        "config": (Path, f"YAML file in place of the default one, or of the checkpoint's; {later}"),
        "help": (None, "Explain every option and every key, and stop."),
        "print_config": (None, "Print the resolved configuration as a YAML file, and stop."),
    }
    for name, text in _arguments(kind).items():
        expected = kind.__annotations__[name]
        options[name] = (None if expected is bool else expected, text)
    return options


def _of_section(name: str, value: Any) -> dict[str, Any]:
    """The keys of a section given as a whole; any other key with its value."""
    if name in SECTIONS and isinstance(value, dict) and value:
        return {f"{name}.{key}": part for key, part in value.items()}
    return {name: value}


def _check_local_rank(given: str) -> None:
    """torch.distributed.launch passes --local-rank and sets LOCAL_RANK, from which it is taken."""
    if os.environ.get("LOCAL_RANK") != given:
        raise ConfigError(
            f"--local-rank {given}: is for launchers that set LOCAL_RANK to the same; start with "
            "torchrun or python -m torch.distributed.launch"
        )


def _arguments(kind: type) -> dict[str, str]:
    """What a class's docstring says of its arguments."""
    entries = inspect.getdoc(kind).partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", entries, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
