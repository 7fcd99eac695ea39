"""The CUDA kernels' own source, compiled by g++, behind the same Python as on a GPU."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from qkformer.neurons.cuda import loader

SHIM = Path(__file__).parent / "neurons" / "cuda" / "shim.h"
FLAGS = ("-O1", "-fPIC", "-shared", "-fno-fast-math", "-ffp-contract=off", "-fno-strict-aliasing",
         "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized")  # fmt: skip
_HEAD = re.compile(r"__global__ void __launch_bounds__\([^)]*\) (\w+)\(")
KERNELS = {family: _HEAD.findall(loader.source(family)) for family in loader.FAMILIES}

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
        blocks: int,
        argument: bytes,
        variant: loader.Variant,
        device: torch.device,
    ) -> None:
        assert device.type == "cpu"
        self.launched.append(kernel)
        run = getattr(self.library(variant, loader.BLOCK), f"launch_{kernel}")
        run.restype = ctypes.c_bool
        assert run(ctypes.c_uint(blocks), argument, len(argument)), "another struct"

    def _build(self, variant: loader.Variant, _block: int) -> ctypes.CDLL:
        source = loader.source(variant.family)
        _, *parts = _HEAD.split(source)
        kernels = zip(parts[::2], parts[1::2], strict=True)
        entries = "".join(
            f"LAUNCHABLE({kernel}, {str('__shared__' in body).lower()})\n"
            for kernel, body in kernels
        )
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
