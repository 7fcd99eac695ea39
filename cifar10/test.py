"""Test a checkpoint on what --config describes, the digits demo unless given: test.py --help."""

from pathlib import Path

from qkformer.training.run import test

if __name__ == "__main__":
    test(Path(__file__).resolve().parents[1] / "configs" / "demo_digits.yml")
