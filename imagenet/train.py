"""Train on configs/imagenet_qkformer_10_384.yml, or on what --config names: train.py --help."""

from pathlib import Path

from qkformer.training.run import train

if __name__ == "__main__":
    train(Path(__file__).resolve().parents[1] / "configs" / "imagenet_qkformer_10_384.yml")
