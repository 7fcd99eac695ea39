"""``python -m qkformer.train --config FILE``: train.py of any data set, without the repository.

FILE may be the name of one that comes along, such as ``cifar10_qkformer.yml``.
"""

from qkformer.training.main import train

if __name__ == "__main__":
    train(None)
