"""What a run runs on: device, folder, versions."""

import errno
import fcntl
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qkformer
from qkformer.training.config import ConfigError
from qkformer.training.distributed import World


def choose_device(name: str, world: World) -> torch.device:
    """The device of this process: auto, cpu or cuda; one GPU for every process of a machine.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device here; use cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if world.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {world.local_rank} of this machine has no GPU: there are "
            f"{torch.cuda.device_count()}; start as many processes, or use --device cpu"
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    # sizes stay the same from step to step: looking for the fastest convolutions once pays
    torch.backends.cudnn.benchmark = True
    return device


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def make_folder(folder: Path) -> None:
    """Create the output folder and make sure, before any work, that files can be written there.

    Raises:
        ConfigError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--output {folder}: {error.strerror}") from error


class FolderLock:
    """Keeps other runs out of a folder, on any machine, for as long as it or its process lives.

    Of the POSIX kind, which processes that this one starts do not inherit: loading processes may
    outlive a run that is killed by seconds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self) -> None:
        """
        Raises:
            ConfigError: another run has it.
        """
        self._file = (self.folder / ".lock").open("w")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return  # a file system without locks
            raise ConfigError(
                f"--output {self.folder}: another run is writing there; wait for its end, or "
                "choose another folder"
            ) from error


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def peak_memory(device: torch.device) -> float:
    """Largest memory so far, in MiB: allocated by PyTorch on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def versions() -> dict[str, str]:
    """Versions of everything that the numbers depend on."""
    packages = ("torch", "torchvision", "timm", "spikingjelly", "numpy", "pillow")
    return {
        "qkformer": qkformer.__version__,
        **{package: version(package) for package in packages},
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }


def describe(device: torch.device, world: World) -> dict[str, Any]:
    """What environment.json holds: how the run was started, on what, with which versions."""
    return {
        "command": shlex.join([sys.executable, *sys.argv]),
        "host": platform.node(),
        "platform": platform.platform(),
        "device": device_name(device),
        "processes": world.size,
        "commit": _commit(),
        "versions": versions(),
    }


def _commit() -> str | None:
    """The checked-out commit of this code, with + where files were changed; None outside git."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty=+",
        "--abbrev=40",
    ]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
