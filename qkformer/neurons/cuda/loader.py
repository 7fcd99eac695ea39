"""Where the kernels come from: their source, CuPy's compiler, and whether they can run at all."""

import functools
import importlib
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

COMMON = ("arithmetic.cuh", "neuron.cuh", "norm.cuh")
FAMILIES = ("dense", "pooled", "moments", "tables", "qk_mask")  # the .cu files
DTYPES = {
    torch.float32: "FLOAT32",
    torch.float16: "FLOAT16",
    torch.bfloat16: "BFLOAT16",
    torch.float64: "FLOAT64",
}
BLOCK = 256  # threads; a power of two
LEGACY_STREAM = 1  # cudaStreamLegacy
CACHE_REMEDY = "set CUPY_CACHE_DIR to a folder that can be written"


class Variant(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        family: of ``FAMILIES``, the file that the kernel is in.
        dtype: of the tensors.
        kind: "IF", "LIF" or "PLIF".
        steps: T, or 0 for a T that is known at launch only.
        vec: neighbouring elements that a thread reads at once, at most 16 bytes.
        surrogate: "sigmoid" or "arctan".
        last: channels are innermost in memory.
        repeated: the input holds one time step that stands for all.
        splits: shares of the channels that leave as tensors of their own.
    """

    family: str
    dtype: torch.dtype
    kind: str = "IF"
    steps: int = 1
    vec: int = 1
    surrogate: str = "sigmoid"
    last: bool = False
    repeated: bool = False
    splits: int = 1

    @property
    def options(self) -> tuple[str, ...]:
        """For the compiler, NVRTC or g++."""
        defines = {"DTYPE": DTYPES[self.dtype], "KIND": self.kind}
        defines |= {"STEPS": self.steps, "VEC": self.vec, "BLOCK": BLOCK}
        defines |= {"SURROGATE": self.surrogate.upper(), "LAST": int(self.last)}
        defines |= {"REPEATED": int(self.repeated), "SPLITS": self.splits}
        return ("-std=c++17", *(f"-D{name}={value}" for name, value in defines.items()))


class Launcher(Protocol):
    """Compiles and runs kernels on the devices of one type."""

    def unavailable(self) -> str | None:
        """Why kernels cannot run, and the remedy; None if they can."""

    def launch(
        self, kernel: str, blocks: int, argument: bytes, variant: Variant, device: torch.device
    ) -> None:
        """Run ``kernel`` in so many blocks of ``BLOCK`` threads on ``device``.

        Args:
            kernel: name of a kernel of ``variant.family``.
            argument: the struct that it takes.
        """


@functools.cache
def source(family: str) -> str:
    """A family's source text."""
    names = (*COMMON, f"{family}.cu")
    return "\n".join((files(__package__) / name).read_text(encoding="utf-8") for name in names)


class CupyLauncher:
    """Kernels on CUDA devices, on PyTorch's current stream.

    CuPy keeps compiled kernels on disk, in ~/.cupy/kernel_cache or $CUPY_CACHE_DIR.
    """

    def unavailable(self) -> str | None:
        return _cupy_unavailable()

    def launch(
        self, kernel: str, blocks: int, argument: bytes, variant: Variant, device: torch.device
    ) -> None:
        cupy = importlib.import_module("cupy")
        stream = torch.cuda.current_stream(device)
        # Both put CuPy's, and with it CUDA's, current device and stream back as they were.
        index = stream.device.index
        # one element that CuPy hands on as it is: a struct by value
        struct = np.frombuffer(argument, _void(len(argument)))
        with cupy.cuda.Device(index), _external_stream(stream.cuda_stream, index):
            _kernel(kernel, variant)((blocks,), (BLOCK,), (struct,))


@functools.cache
def _void(size: int) -> np.dtype:
    return np.dtype((np.void, size))


@functools.cache  # neither CuPy nor a GPU appears while a process runs
def _cupy_unavailable() -> str | None:
    wanted = torch.version.cuda
    if wanted is None:
        return "this PyTorch is built without CUDA; install one with it, see pytorch.org"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    major = wanted.split(".")[0]
    remedy = f"pip install 'qkformer[cuda{major}]' (it brings cupy-cuda{major}x)"
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return f"CuPy cannot be imported ({error}): {remedy}"
    except OSError as error:  # CuPy 14 makes its cache's folder when it is imported
        return f"CuPy cannot be imported ({error}): {CACHE_REMEDY}"
    built = cupy.cuda.runtime.runtimeGetVersion() // 1000
    if built != int(major):
        return (
            f"CuPy is built for CUDA {built}, PyTorch for CUDA {wanted}: "
            f"pip uninstall cupy-cuda{built}x, then {remedy}"
        )
    try:
        compiler, _ = cupy.cuda.nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        line = " ".join(str(error).split())
        return f"CuPy finds no compiler ({line}): pip install 'cupy-cuda{major}x[ctk]'"
    if compiler > int(major):  # CuPy 14 takes the newest there is; old GPUs and drivers do not
        return (
            f"CuPy finds the compiler of CUDA {compiler}, PyTorch is built for CUDA {wanted}: "
            "pip uninstall nvidia-cuda-nvrtc"
        )
    return None


@functools.cache
def _external_stream(pointer: int, device: int) -> Any:
    """CuPy's view of a stream that PyTorch owns (its streams live as long as the process).

    To be made on that device. PyTorch's default stream, 0, goes by CUDA's name for it: 0 is another
    one to CuPy under CUPY_CUDA_PER_THREAD_DEFAULT_STREAM=1.
    """
    streams = importlib.import_module("cupy").cuda
    pointer = pointer or LEGACY_STREAM
    if hasattr(streams.Stream, "from_external"):  # CuPy 14, which deprecates the other
        return streams.Stream.from_external(SimpleNamespace(__cuda_stream__=lambda: (0, pointer)))
    return streams.ExternalStream(pointer, device)


@functools.cache
def _kernel(name: str, variant: Variant) -> Any:
    """CuPy's RawKernel, compiled here; on other devices at its first call."""
    if torch.cuda.is_current_stream_capturing():  # CUDA would only say: not permitted
        raise RuntimeError(
            f"kernel {name} cannot be compiled while a CUDA graph is captured: run the same step "
            "once before, as torch.cuda.make_graphed_callables does"
        )
    try:
        return _module(variant).get_function(name)
    except OSError as error:
        raise RuntimeError(
            f"CuPy cannot keep what it compiled ({error}): {CACHE_REMEDY}"
        ) from error


@functools.cache
def _module(variant: Variant) -> Any:
    cupy = importlib.import_module("cupy")
    return cupy.RawModule(code=source(variant.family), options=variant.options, backend="nvrtc")


# By device type. Tests put one for "cpu" here, made of the same sources by g++.
LAUNCHERS: dict[str, Launcher] = {"cuda": CupyLauncher()}


def unavailable(device: torch.device | None = None, dtype: torch.dtype | None = None) -> str | None:
    """Why the kernels cannot run, and what to do; None if they can.

    Args:
        device: of the tensors; None for any.
        dtype: of the tensors; None for any supported.
    """
    if dtype is not None and dtype not in DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        return f"the kernels take {names}, got {str(dtype).removeprefix('torch.')}"
    if device is None:
        reasons = [launcher.unavailable() for launcher in LAUNCHERS.values()]
        return None if None in reasons else reasons[0]
    if device.type not in LAUNCHERS:
        return f"the kernels run on CUDA devices, got a tensor on {device}: move model and input"
    return LAUNCHERS[device.type].unavailable()
