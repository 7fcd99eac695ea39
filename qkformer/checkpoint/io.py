"""Checkpoint files: written whole or not at all, and read without running what is in them."""

import argparse
import hashlib
import json
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from qkformer.files import FileError, replacing
from qkformer.text import first_sentence

# A model's folder as timm writes it for the hub, and the key of its config.json under which
# qkformer.export keeps what a checkpoint of ours says besides its weights.
HUB_CONFIG, HUB_WEIGHTS, HUB_RECORD = "config.json", "model.safetensors", "qkformer"
_MODEL_KEYS = ("T", "ssa", "neuron", "mlp_ratio", "drop_path_rate", "backend")  # of a config.yml
_ZIP_MAGIC = b"PK\x03\x04"
# torch.save(..., _use_new_zipfile_serialization=False): a pickled long that marks the old format
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class CheckpointError(FileError):
    """A checkpoint cannot be read or written, or is not what it should be; the message says why."""


def save_checkpoint(obj: Any, path: str | os.PathLike) -> None:
    """`torch.save`, whole or not at all: a reader sees the old file or the new one, never a part.

    Raises:
        FileError: the folder is missing, not writable or full; `path` is as it was before.
    """
    path = Path(path)
    with replacing(path) as file:
        try:
            torch.save(obj, file)
        except RuntimeError as error:
            # torch reports a full disk as RuntimeError; the OSError behind it says why
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            raise FileError(f"cannot write {path}: {first_sentence(reason)}") from error


def read_checkpoint(path: str | os.PathLike, *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running any code that it may hold.

    Accepts what `torch.save` wrote (both formats) as long as it is a dict of tensors, plain
    values, containers and `argparse.Namespace`, which the published checkpoints contain;
    `.safetensors` files, returned as a flat state dict; and folders as timm's `save_for_hf` and
    `python -m qkformer.export hf` write them, returned like a checkpoint of ours.

    Args:
        mmap: Leave the tensors in the file until they are used, where its format allows it: for
            what is copied or dropped at once. They are gone when the file is overwritten in place.

    Raises:
        CheckpointError: missing, another folder, empty, truncated, no checkpoint, not a dict, or
            holding an object of any other class, which is named and has not been executed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, mmap)
    _check_is_readable_file(path)
    if path.suffix.lower() == ".safetensors":
        content = _read_safetensors(path)
    else:
        content = _read_torch(path, mmap=mmap and zipfile.is_zipfile(path))
    if not isinstance(content, dict):
        kind = f"{type(content).__module__}.{type(content).__qualname__}"
        raise CheckpointError(f"{path}: expected a dict such as {{'model': ...}}, found {kind}")
    return content


def file_md5(path: str | os.PathLike) -> str:
    """Hex md5 of a file, by which published checkpoints are identified (not a safety measure).

    Of a folder it is that of the weights.
    """
    path = Path(path)
    try:
        with open(_weights_in(path) if path.is_dir() else path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {first_sentence(error)}") from error


def _weights_in(folder: Path) -> Path:
    for name in (HUB_WEIGHTS, "pytorch_model.bin"):
        if (folder / name).is_file() and (folder / HUB_CONFIG).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder}: is a folder without {HUB_CONFIG} and {HUB_WEIGHTS}, expected a checkpoint "
        "file, or a folder written by python -m qkformer.export hf or timm's save_for_hf"
    )


def _read_folder(folder: Path, mmap: bool) -> dict[str, Any]:
    state = read_checkpoint(_weights_in(folder), mmap=mmap)
    try:
        config = json.loads((folder / HUB_CONFIG).read_text(encoding="utf-8"))
        record, arguments = config.get(HUB_RECORD, {}), dict(config.get("model_args", {}))
        for given in ("num_classes", "in_chans", "global_pool"):  # by the data and the head
            arguments.pop(given, None)
        model = {key: arguments.pop(key) for key in _MODEL_KEYS if key in arguments}
        model |= {"name": config["architecture"], "args": arguments}
        return {"config": {"model": model}, **record, "state_dict": state}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_sentence(error)
        raise CheckpointError(f"{folder / HUB_CONFIG}: not of a model ({reason})") from error


def _check_is_readable_file(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        reason = f"truncated, damaged or not a safetensors file ({first_sentence(error)})"
        raise CheckpointError(f"{path}: {reason}") from error


def _read_torch(path: Path, *, mmap: bool) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
        # what torch warns of here (pickle protocol, TorchScript) is an error below or harmless
        warnings.simplefilter("ignore", UserWarning)
        try:
            return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
        # On foreign bytes the unpickler fails with whatever its opcodes trip over: KeyError,
        # IndexError, struct.error, UnicodeDecodeError, ... All mean that the file is unusable.
        except Exception as error:
            raise CheckpointError(f"{path}: {_why_unreadable(path, error)}") from error


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read ({first_sentence(error)})"
    if "TorchScript" in str(error):
        return "is a TorchScript archive, expected a state dict saved with torch.save"
    refused = _refused_object(path, error)
    if refused:
        return f"holds an object of {refused}, which was refused and not executed"
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY_MAGIC))
    if start.startswith(_ZIP_MAGIC) or start == _LEGACY_MAGIC:
        return f"truncated, damaged or not written by torch.save ({first_sentence(error)})"
    return "not a checkpoint: torch.save did not write this file"


def _refused_object(path: Path, error: Exception) -> str | None:
    """`module.name` of what the safe loader refused, None where it failed for another reason."""
    named = re.search(r"\bGLOBAL (\S*[^\s.]) ", str(error))  # a name that ends in a dot was cut off
    if named:
        # torch leaves `builtins.` out
        return named[1] if "." in named[1] else f"builtins.{named[1]}"
    if "Unsupported operand" not in str(error):
        return None
    # A pickle protocol that the safe loader cannot parse: list what it names, run nothing.
    harmless = ("argparse.Namespace", "collections.OrderedDict", "torch.")
    return next((name for name in _named_in_pickles(path) if not name.startswith(harmless)), None)


def _named_in_pickles(path: Path) -> list[str]:
    """The classes and functions a file's pickles name, as far as they can be parsed."""
    names: list[str] = []
    # genops raises all sorts on arbitrary bytes, and a ValueError behind the last pickle;
    # what was found before that counts
    with suppress(Exception), _open_pickles(path) as file:
        while True:  # the old format is several pickles in a row
            strings: list[str] = []
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    names.append(argument.replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    return names


@contextmanager
def _open_pickles(path: Path) -> Iterator[BinaryIO]:
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(member) as file:
            yield file
