"""What NVRTC makes of the kernels, without a GPU: registers, spills, instructions, loads."""

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import nvrtc

from qkformer.neurons.cuda import loader

APART = {"BRA", "BRX", "CALL", "RET", "EXIT", "BAR", "BSSY", "BSYNC"}


class Code(NamedTuple):
    """One kernel's machine code.

    Attributes:
        registers: of a thread; 65,536 are shared by all of a multiprocessor.
        stack: bytes of a thread.
        spills: loads from and stores to local memory.
        instructions: in the code, not those that a thread executes.
        together: by its bytes, how often a load from global memory comes at most with no branch,
            call or barrier in between: no more can a thread wait for at once.
    """

    registers: int
    stack: int
    spills: int
    instructions: int
    together: dict[int, int]


@functools.cache
def cuobjdump() -> str | None:
    """CUDA's disassembler: on PATH, or Triton's, which comes with PyTorch's Linux wheels."""
    triton = importlib.util.find_spec("triton")
    folders = triton.submodule_search_locations if triton else ()
    bundled = [str(Path(folder) / "backends/nvidia/bin") for folder in folders]
    found = (shutil.which("cuobjdump", path=path) for path in (None, *bundled))
    return next(filter(None, found), None)


@functools.cache
def compiled(variant: loader.Variant, arch: str = "sm_90", cuda: int = 13) -> dict[str, Code]:
    """The code of every kernel of a variant's family, by name; needs NVRTC and cuobjdump."""
    cubin = nvrtc.compile_variant(nvrtc.load(cuda), variant, arch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        usage = _dump(path, "--dump-resource-usage")
        sass = _dump(path, "--dump-sass")
    resources = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", usage)
    texts = dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function :|\Z)", sass, re.DOTALL))
    return {name: _code(int(r), int(s), texts[name]) for name, r, s in resources}


def _dump(path: Path, what: str) -> str:
    command = [cuobjdump(), what, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _code(registers: int, stack: int, text: str) -> Code:
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ )?([A-Z][\w.]*)", text)
    operations = [line for line in lines if line != "NOP"]  # which fills up the last line
    spills = sum(operation.startswith(("LDL", "STL")) for operation in operations)
    together = {width: _together(operations, width) for width in {*map(_bytes, operations)} - {0}}
    return Code(registers, stack, spills, len(operations), together)


def _bytes(operation: str) -> int:
    """Of a load from global memory; 0 of anything else."""
    if not operation.startswith("LDG"):
        return 0
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[part] for part in operation.split(".") if part in widths), 4)


def _together(operations: list[str], width: int) -> int:
    longest = run = 0
    for operation in operations:
        if operation.split(".")[0] in APART:
            run = 0
        run += _bytes(operation) == width
        longest = max(longest, run)
    return longest
