"""Which of the training processes this one is."""

import os
from dataclasses import dataclass

from qkformer.training.config import ConfigError


@dataclass(frozen=True)
class Process:
    """One of `world_size` processes that train together, 0 <= rank < world_size."""

    rank: int = 0
    world_size: int = 1


def this_process() -> Process:
    """This process's place, as torchrun and its like announce it.

    Raises:
        ConfigError: there are several processes. Training does not share its work among them yet,
            and they would overwrite each other's files.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        raise ConfigError(f"WORLD_SIZE is {world_size}: training runs in a single process so far")
    return Process()
