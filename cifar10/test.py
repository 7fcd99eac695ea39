"""Test a checkpoint: configs/cifar10_qkformer.yml unless --config says otherwise."""

import os
from pathlib import Path

# Before PyTorch is imported: its threads spin while they wait for each other, and beside another
# busy program a long spin makes two of them ten times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from qkformer.training.main import test

if __name__ == "__main__":
    test(Path(__file__).resolve().parents[1] / "configs" / "cifar10_qkformer.yml")
