"""Test a checkpoint: configs/cifar10_qkformer.yml unless --config says otherwise."""

from pathlib import Path

from qkformer.training.run import test

if __name__ == "__main__":
    test(Path(__file__).resolve().parents[1] / "configs" / "cifar10_qkformer.yml")
