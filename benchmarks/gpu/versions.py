"""What the machine has: versions, and whether our kernels can run."""

import importlib
import platform

import torch

from qkformer.neurons.cuda import loader
from qkformer.training.distributed import World
from qkformer.training.environment import choose_device, describe


def main() -> None:
    """Print a line each."""
    print(platform.python_version(), describe(choose_device("auto", World()), World())["versions"])
    print("cuDNN", torch.backends.cudnn.version())
    try:
        cupy = importlib.import_module("cupy")
    except (ImportError, OSError) as error:
        print("CuPy:", error)
    else:
        print("CuPy", cupy.__version__, "NVRTC", cupy.cuda.nvrtc.getVersion())
    print("kernels cannot run because:", loader.unavailable())


if __name__ == "__main__":
    main()
