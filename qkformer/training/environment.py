"""What a run runs on: device and precision, folder, random numbers, versions."""

import os
import platform
import random
import shlex
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qkformer
from qkformer.training.config import ComputeConfig, ConfigError
from qkformer.training.distributed import World

try:
    import resource
except ImportError:  # Windows
    resource = None

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

# ------------------------------------------------------------------------------------ device


def choose_device(name: str, world: World) -> torch.device:
    """The device of this process: auto, cpu or cuda; one GPU for every process of a machine.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device here; use cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    visible, index = torch.cuda.device_count(), world.local_rank
    # srun --gpus-per-task=1 shows every task its own GPU as the only one; torchrun shows all to all
    if visible == 1 and "LOCAL_RANK" not in os.environ:
        index = 0
    if index >= visible:
        raise ConfigError(
            f"process {index} of this machine has no GPU: there are {visible}; start as many "
            "processes, or use --device cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    # sizes stay the same from step to step: looking for the fastest convolutions once pays
    torch.backends.cudnn.benchmark = True
    return device


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def check_compute(compute: ComputeConfig, device: torch.device) -> None:
    """Refuse what this device cannot do.

    Raises:
        ConfigError: bfloat16 on a GPU without it, SyncBatchNorm on the CPU.
    """
    if compute.sync_batchnorm and device.type != "cuda":
        raise ConfigError("compute.sync_batchnorm: PyTorch has it for GPUs only")
    if compute.precision == "bf16" and device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major < 8:
            name = torch.cuda.get_device_name(device)
            raise ConfigError(f"compute.precision: {name} has no bfloat16; take fp16")


def computed(precision: str, device: torch.device) -> str:
    """The precision that takes the place of the configured one: fp16 is for GPUs."""
    return "fp32" if precision == "fp16" and device.type != "cuda" else precision


def precision_remarks(precision: str, device: torch.device) -> list[str]:
    """A line where another precision takes the place of the configured one."""
    if computed(precision, device) == precision:
        return []
    return ["compute.precision: fp16 is for GPUs, on the CPU float32 takes its place"]


def scales(precision: str, device: torch.device) -> bool:
    """Whether gradients need a scaler: float16 has few exponents."""
    return computed(precision, device) == "fp16"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context of forward passes.

    It keeps no copies of weights in half precision: a pass takes each of them once, and none may
    find its way into a CUDA graph and out again.
    """
    precision = computed(precision, device)
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision], cache_enabled=False)


def peak_memory(device: torch.device) -> float | None:
    """Largest memory so far, in MiB: allocated by PyTorch on a GPU, else of this process.

    None on the CPU of a Windows machine.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


# ------------------------------------------------------------------------------------ folder


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


def look_at_folder(folder: Path) -> None:
    """As `make_folder`, but without leaving a folder behind."""
    make_folder(next(path for path in (folder, *folder.absolute().parents) if path.exists()))


# ---------------------------------------------------------------------------- random numbers


def seed_everything(seed: int) -> None:
    """Seed the global random numbers of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The global random numbers' state, in plain values and tensors that load safely."""
    _, words, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (words.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Undo what happened to the global random numbers since `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(("MT19937", *state["numpy"]))
    torch.set_rng_state(state["torch"])
    # a run may go on on another device, whose numbers then keep the run's seed
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


# ---------------------------------------------------------------------------------- versions


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
        "command": shlex.join(sys.orig_argv),
        "host": platform.node(),
        "platform": platform.platform(),
        "device": device_name(device),
        "processes": world.size,
        "commit": _commit(),
        "versions": versions(),
    }


def _commit() -> str | None:
    """The checked-out commit of this code, with + where files were changed; None outside git."""
    folder = str(Path(__file__).parent)
    git = ["git", "-C", folder, "describe", "--always", "--dirty=+", "--abbrev=40"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
