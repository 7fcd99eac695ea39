"""Loaders whose order depends on nothing but the seed and the epoch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from qkformer.data.datasets import DataConfig, DataError


class EpochSampler(Sampler[int]):
    """A new order every epoch, the same for the same seed and epoch however training got there.

    Every process takes its own, equally long part of that order.

    Args:
        size: Number of samples in the data set.
        seed: Seed of the run.
        rank: This process, 0 <= rank < world_size.
        world_size: Number of processes.
    """

    def __init__(self, size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.size, self.seed, self.rank, self.world_size = size, seed, rank, world_size
        self.generator = torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next pass has."""
        # mixed rather than added: seed 0, epoch 1 must not be the order of seed 1, epoch 0
        self._epoch_seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0])
        # the loader seeds its workers from this generator, so they too depend on the epoch alone
        self.generator.manual_seed(self._epoch_seed)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._epoch_seed)
        order = torch.randperm(self.size, generator=generator)
        return iter(order[self.rank :: self.world_size][: len(self)].tolist())

    def __len__(self) -> int:
        return self.size // self.world_size


def training_loader(
    dataset: Dataset,
    config: DataConfig,
    device: torch.device,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Shuffled batches of full size; call `loader.sampler.set_epoch(epoch)` before every pass.

    Raises:
        DataError: the data set has less than one batch for every process.
    """
    sampler = EpochSampler(len(dataset), seed=seed, rank=rank, world_size=world_size)
    if len(sampler) < config.batch_size:
        raise DataError(
            f"data.batch_size: {config.batch_size} is more than the {len(sampler)} training images"
        )
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=sampler,
        generator=sampler.generator,
        num_workers=config.workers,
        drop_last=True,  # BatchNorm's statistics over a handful of images would be noise
        pin_memory=device.type == "cuda",
    )


def evaluation_loader(dataset: Dataset, config: DataConfig, device: torch.device) -> DataLoader:
    """Every image exactly once, in order."""
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        generator=torch.Generator(),  # leaves the global random numbers to training
        num_workers=config.workers,
        pin_memory=device.type == "cuda",
    )
