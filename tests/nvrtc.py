"""NVRTC, CUDA's run-time compiler, through ctypes: it needs neither a GPU nor a driver."""

import ctypes
import functools
import importlib.util
from pathlib import Path

from qkformer.neurons.cuda import loader

FOLDERS = {12: "nvidia.cuda_nvrtc", 13: "nvidia.cu13"}  # of nvidia-cuda-nvrtc-cu12, -nvrtc
# What CuPy 14 adds to our options; 12 and 13 add no more.
CUPYS_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")


@functools.cache
def load(major: int) -> ctypes.CDLL | None:
    """NVRTC of that CUDA version, if its Python package is installed."""
    try:
        spec = importlib.util.find_spec(FOLDERS[major])
    except ModuleNotFoundError:
        return None
    for folder in spec.submodule_search_locations if spec else ():
        path = Path(folder) / "lib" / f"libnvrtc.so.{major}"
        if path.exists():
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins))  # which NVRTC opens by name, and would not find
            return ctypes.CDLL(str(path))
    return None


def compile_variant(nvrtc: ctypes.CDLL, variant: loader.Variant, arch: str) -> bytes:
    """The machine code of a variant's kernels, by the options that CuPy would give."""
    options = (*variant.options, *CUPYS_OPTIONS, f"--gpu-architecture={arch}")
    return compile_source(nvrtc, loader.source(variant.family), options)


def compile_source(nvrtc: ctypes.CDLL, source: str, options: tuple[str, ...]) -> bytes:
    """The machine code of CUDA C++, or an AssertionError with the compiler's log."""
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"k.cu", 0, 0, 0) == 0
    try:
        flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), flags)
        assert status == 0, _output(nvrtc, "ProgramLog", program).decode()
        return _output(nvrtc, "CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _output(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{what}")(program, buffer) == 0
    return buffer.raw
