"""Test a checkpoint on configs/imagenet_qkformer_10_384.yml, or on what --config names: test.py --help."""

from pathlib import Path

from qkformer.training.run import test

if __name__ == "__main__":
    test(Path(__file__).resolve().parents[1] / "configs" / "imagenet_qkformer_10_384.yml")
