"""Train: configs/cifar100_qkformer.yml unless --config says otherwise."""

from pathlib import Path

from qkformer.training.run import train

if __name__ == "__main__":
    train(Path(__file__).resolve().parents[1] / "configs" / "cifar100_qkformer.yml")
