"""The command line that all benchmarks share."""

import argparse
from pathlib import Path

import torch

from benchmarks.results_file import RESULTS
from qkformer.training.distributed import World
from qkformer.training.environment import choose_device


def parser(description: str, *, repeats: int) -> argparse.ArgumentParser:
    """Device, threads, repeats and where results go."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    made.add_argument("--threads", type=int, help="of PyTorch on the CPU; its own choice if absent")
    made.add_argument("--repeats", type=int, default=repeats, help="timed rounds")
    made.add_argument(
        "--no_memory", action="store_true", help="time only; on the CPU memory takes a new process"
    )
    made.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    return made


def network_options(made: argparse.ArgumentParser) -> None:
    """What train and inference ask about the network."""
    made.add_argument("--model", default="qkformer_10_384", help="a model of qkformer.list_models")
    made.add_argument("--model_args", default="{}", help="its arguments, as in '{embed_dim: 64}'")
    made.add_argument("--size", type=int, help="of images, in pixels; the model's own if absent")
    made.add_argument("--batch", type=int, nargs="+", default=[1])
    made.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    made.add_argument(
        "--compile", action="store_true", help="torch.compile of both, too; takes minutes"
    )
    made.add_argument(
        "--to_memory_limit", action="store_true", help="double the last batch until nothing fits"
    )


def set_up(arguments: argparse.Namespace) -> torch.device:
    """The device, once the number of threads is set."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return choose_device(arguments.device, World())


def threads_label(device: torch.device) -> str:
    """What the end of a label says about the CPU."""
    count = torch.get_num_threads()
    return "" if device.type == "cuda" else f", {count} thread{'s' if count > 1 else ''}"
