"""Train on CIFAR10, or whatever --config says: python train.py --help."""

from pathlib import Path

from qkformer.training.run import train

if __name__ == "__main__":
    train(Path(__file__).resolve().parents[1] / "configs" / "demo_digits.yml")
