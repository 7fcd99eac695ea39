"""``python -m qkformer.test --checkpoint PATH``: test.py of any data set, without the repository.

The configuration is that of the checkpoint, or of ``--config FILE``.
"""

from qkformer.training.main import test

if __name__ == "__main__":
    test(None)
