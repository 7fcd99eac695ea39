"""The kernels' source: NVRTC takes it for every GPU, and its number formats are PyTorch's."""

import ctypes
import subprocess

import nvrtc
import pytest
import torch
from host_kernels import FLAGS, KERNELS, SHIM, needs_gpp

from qkformer.neurons.cuda import loader
from qkformer.neurons.cuda.loader import Variant

pytestmark = pytest.mark.slow

HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
VARIANTS = [
    Variant("dense", FLOAT, "IF", 1, 4),
    Variant("dense", HALF, "LIF", 4, 8, last=True, splits=3),
    Variant("dense", BFLOAT, "PLIF", 16, 2, repeated=True),
    Variant("dense", HALF, "LIF", 32, 1, "arctan", last=True),
    Variant("dense", DOUBLE, "PLIF", 0, 1, splits=2),
    Variant("pooled", FLOAT, "PLIF", 4, 4, last=True),
    Variant("pooled", HALF, "IF", 7, 1, repeated=True),
    Variant("pooled", DOUBLE, "LIF", 1, 2, last=True),
    Variant("pooled", BFLOAT, "LIF", 0, 4, last=True),
    Variant("moments", HALF, vec=8, last=True),
    Variant("moments", DOUBLE, vec=2),
    Variant("tables", FLOAT),
    Variant("tables", DOUBLE),
    Variant("qk_mask", HALF, "LIF", 4, 4),
    Variant("qk_mask", FLOAT, "PLIF", 16, 2),
    Variant("qk_mask", DOUBLE, "IF", 32, 1),
    Variant("qk_mask", DOUBLE, "LIF", 8, 2),
    Variant("qk_mask", BFLOAT, "PLIF", 0, 1),
]


def str_of(variant):
    return f"{variant.family}-{loader.DTYPES[variant.dtype]}-{variant.kind}-T{variant.steps}"


# CUDA 13 has given up Volta. One variant of each family shows what differs between GPUs.
FAMILIES = {variant.family: variant for variant in VARIANTS}.values()
COMPILED = [(variant, "sm_70", 12) for variant in VARIANTS]
COMPILED += [(variant, arch, 13) for variant in FAMILIES for arch in ("sm_80", "sm_90")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "arch", "cuda"), COMPILED, ids=lambda x: str_of(x) if isinstance(x, Variant) else x
)
def test_nvrtc_compiles_the_kernels(variant, arch, cuda):
    compiler = nvrtc.load(cuda)
    if compiler is None:
        pytest.skip(f"needs NVRTC of CUDA {cuda}: see the test extra in pyproject.toml")
    cubin = nvrtc.compile_variant(compiler, variant, arch)
    for kernel in KERNELS[variant.family]:
        assert f".text.{kernel}\0".encode() in cubin


@needs_gpp
def test_sixteen_bit_numbers_are_pytorchs(tmp_path):
    """All of float16 and bfloat16 widened; floats between, on and beyond them narrowed."""
    names = ("half", "bfloat")
    functions = "".join(
        f'extern "C" void widen_{n}(const unsigned short* x, float* y, int size) '
        f"{{ for (int i = 0; i < size; ++i) y[i] = {n}_to_float(x[i]); }}\n"
        f'extern "C" void narrow_{n}(const float* x, unsigned short* y, int size) '
        f"{{ for (int i = 0; i < size; ++i) y[i] = float_to_{n}(x[i]); }}\n"
        for n in names
    )
    path = tmp_path / "convert.cpp"
    path.write_text(SHIM.read_text() + loader.source("dense") + functions)
    options = VARIANTS[0].options
    command = ["g++", *FLAGS, *options, str(path), "-o", str(tmp_path / "convert.so")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(tmp_path / "convert.so"))

    def convert(function, x, dtype):
        y = torch.empty(x.shape, dtype=dtype)
        size = ctypes.c_int(x.numel())
        getattr(library, function)(
            ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), size
        )
        return y

    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    # every float whose last 13 bits are one of a few: on, between and just off 16-bit numbers
    floats = torch.arange(-(2**18), 2**18, dtype=torch.int32)[:, None] << 13
    floats = floats | torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001])
    floats = torch.cat([floats.flatten(), bits.int() << 16 | 0x8000]).int().view(torch.float32)
    for name, dtype in zip(names, (torch.float16, torch.bfloat16), strict=True):
        numbers = bits.view(dtype)
        wide = convert(f"widen_{name}", numbers, torch.float32)
        torch.testing.assert_close(wide, numbers.float(), rtol=0, atol=0, equal_nan=True)
        narrow = convert(f"narrow_{name}", floats, dtype)
        torch.testing.assert_close(narrow, floats.to(dtype), rtol=0, atol=0, equal_nan=True)
