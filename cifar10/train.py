"""Train on what --config describes, the digits demo unless given: train.py --help."""

from pathlib import Path

from qkformer.training.run import train

if __name__ == "__main__":
    train(Path(__file__).resolve().parents[1] / "configs" / "demo_digits.yml")
