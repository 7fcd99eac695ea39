"""The CUDA kernels' own source, compiled by g++, behind the same Python as on a GPU."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from qkformer.neurons.cuda import loader

SHIM = Path(__file__).parent / "neurons" / "cuda" / "shim.h"
FLAGS = ("-O1", "-fPIC", "-shared", "-fno-fast-math", "-ffp-contract=off", "-fno-strict-aliasing",
         "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized")  # fmt: skip
KERNELS = {
    family: re.findall(r"__global__ void (\w+)\(", loader.source(family))
    for family in loader.FAMILIES
}

needs_gpp = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class HostLauncher:
    """A :class:`loader.Launcher` for the CPU; compiles into ``folder``, runs block by block.

    Libraries are named by what they are made of, so that any process of any run may take them.

    Attributes:
        launched: names of the kernels that ran, in order.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.launched: list[str] = []
        self.library = functools.cache(self._build)

    def unavailable(self) -> str | None:
        return None

    def launch(
        self,
        kernel: str,
        threads: int,
        args: Sequence,
        *,
        variant: loader.Variant,
        device: torch.device,
    ) -> None:
        assert device.type == "cpu"
        self.launched.append(kernel)
        cells = [ctypes.create_string_buffer(arg.tobytes()) for arg in args]
        pointers = (ctypes.c_void_p * len(args))(*map(ctypes.addressof, cells))
        getattr(self.library(variant), f"launch_{kernel}")(ctypes.c_uint(threads), pointers)

    def _build(self, variant: loader.Variant) -> ctypes.CDLL:
        source = loader.source(variant.family)
        has_barriers = str("__syncthreads" in source).lower()
        kernels = KERNELS[variant.family]
        entries = "".join(f"LAUNCHABLE({kernel}, {has_barriers})\n" for kernel in kernels)
        text, command = SHIM.read_text() + source + entries, ["g++", *FLAGS, *variant.options]
        name = hashlib.sha256(repr((text, command)).encode()).hexdigest()[:32]
        library = self.folder / f"{name}.so"
        if library.exists():
            return ctypes.CDLL(str(library))
        path = self.folder / f"{name}.{os.getpid()}.cpp"
        made = path.with_suffix(".so")
        path.write_text(text)
        command += [str(path), "-o", str(made)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        path.unlink()
        made.replace(library)
        return ctypes.CDLL(str(library))
