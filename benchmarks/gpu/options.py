"""What kernels and step share: the command line, the network, names of kernels."""

import argparse
import re
from typing import Any

import torch

from benchmarks.networks import Setting
from qkformer.neurons.cuda import loader

LAYOUTS = {"cl": True, "c": False}  # channels_last, contiguous
TINY = {"embed_dim": 128, "num_heads": 2}  # arguments of a model that a CPU can do
KERNEL = r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\("  # its name in the source
KERNELS = frozenset(
    name for family in loader.FAMILIES for name in re.findall(KERNEL, loader.source(family))
)


def common(made: argparse.ArgumentParser, *, batch: int) -> None:
    """Add what both ask."""
    made.add_argument("--model", default="qkformer_10_384")
    made.add_argument("--batch", type=int, default=batch)
    made.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    made.add_argument("--out", help="a JSON file")
    made.add_argument(
        "--dry", action="store_true", help="no GPU, tiny sizes, kernels that do nothing"
    )


def setting(options: argparse.Namespace, precision: str, **differing: Any) -> Setting:
    """The model at its own size on the GPU; tiny and on the CPU for --dry."""
    if options.dry:
        device = torch.device("cpu")
        return Setting(options.model, 32, options.batch, precision, device, TINY, **differing)
    device = torch.device("cuda")
    return Setting(options.model, 0, options.batch, precision, device, **differing).at(None)


def kernel(name: str) -> str | None:
    """Which of our kernels the profiler means, if it is one of ours."""
    plain = re.split(r"[(<]", name.removeprefix("void "))[0]
    return plain if plain in KERNELS else None
