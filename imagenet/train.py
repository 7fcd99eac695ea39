"""Train: configs/imagenet_qkformer_10_384.yml unless --config says otherwise."""

import os
from pathlib import Path

# Before PyTorch is imported: its threads spin while they wait for each other, and beside another
# busy program a long spin makes two of them ten times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from qkformer.training.main import train

if __name__ == "__main__":
    train(Path(__file__).resolve().parents[1] / "configs" / "imagenet_qkformer_10_384.yml")
