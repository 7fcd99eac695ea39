"""Batches whose content depends on nothing but the seed, the epoch and the position in it."""

import atexit
import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from qkformer.data.samples import Damaged
from qkformer.data.source import DataConfig, DataError
from qkformer.data.workers import loading_processes
from qkformer.text import one_line

Key = tuple[int, int]  # index of a sample, seed of its transform


class Batch(NamedTuple):
    """Samples [B, ...], class indices [B], and the samples that could not be read.

    `samples` and `targets` are None where nothing could.
    """

    samples: Tensor | None
    targets: Tensor | None
    damaged: tuple[Damaged, ...]


class TrainingBatches(Sampler[list[Key]]):
    """Batches of keys: a new order every epoch, the same however training got there.

    Consecutive batches of the order go to consecutive processes. So W processes that take one batch
    each step see what one process sees that accumulates the gradients of W batches.

    Args:
        size: Number of samples in the data set.
        batch_size: Samples per batch of one process.
        seed: Seed of the run.
        rank: This process, 0 <= rank < world_size.
        world_size: Number of processes.
        accumulation: Batches of a process that make a step; a pass ends with a whole step.
        repeats: How often a sample is there, one in so many being left out. As by timm's
            RepeatAugSampler, those of one sample go to different batches of a step.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        repeats: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed, self.repeats = size, batch_size, seed, repeats
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self.set_position(0)

    @property
    def together(self) -> int:
        """Samples in one batch of every process."""
        return self.batch_size * self.world_size

    @property
    def step_size(self) -> int:
        """Samples in one step: all processes, all accumulated batches."""
        return self.together * self.accumulation

    def fraction(self, done: int) -> float:
        """Which part of an epoch is behind `done` samples, counted in whole batches."""
        return done // self.together / (self.size // self.together)

    def set_position(self, epoch: int, done: int = 0) -> None:
        """Choose where the next pass starts: in `epoch`, behind `done` samples of all processes."""
        self.epoch, self.done = epoch, done

    def __iter__(self) -> Iterator[list[Key]]:
        # mixed rather than added: seed 0, epoch 1 must not be the order of seed 1, epoch 0
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(self.size)
        seeds = random.integers(2**32, size=self.size)
        if self.repeats > 1:
            order = self._repeated(order)
        for batch in range(len(self)):
            start = self.done + batch * self.together + self.rank * self.batch_size
            part = slice(start, start + self.batch_size)
            yield list(zip(order[part].tolist(), seeds[part].tolist(), strict=True))

    def _repeated(self, order: np.ndarray) -> np.ndarray:
        """As many whole steps as before, of fewer samples, each dealt out batch by batch."""
        whole = self.size // self.step_size * self.step_size
        repeated = np.repeat(order, self.repeats)[:whole]
        batches = self.step_size // self.batch_size
        return repeated.reshape(-1, self.batch_size, batches).swapaxes(1, 2).reshape(-1)

    def __len__(self) -> int:
        """Batches left for every process; all are full, the rest of the epoch is left out."""
        return (self.size - self.done) // self.step_size * self.accumulation


class EvaluationBatches(Sampler[list[Key]]):
    """Every sample once, in order; batch i goes to process i modulo `world_size`.

    The batches are the same for any number of processes, which matters under ssa="original".
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.starts = range(rank * batch_size, size, world_size * batch_size)
        self.size, self.batch_size = size, batch_size
        # processes whose share is a batch shorter have to wait for the others
        self.longest = len(range(0, size, world_size * batch_size))

    def __iter__(self) -> Iterator[list[Key]]:
        for start in self.starts:
            # nothing is drawn in testing; a seed all the same, so that keys have one form
            yield [(index, 0) for index in range(start, min(start + self.batch_size, self.size))]

    def __len__(self) -> int:
        return len(self.starts)


def training_loader(
    dataset: Dataset,
    config: DataConfig,
    device: torch.device,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    repeats: int = 1,
) -> DataLoader:
    """Shuffled full batches; call `loader.batch_sampler.set_position(epoch, done)` before a pass.

    Raises:
        DataError: the data set is smaller than one step of all processes.
    """
    step = config.batch_size * world_size * accumulation
    if len(dataset) < step:
        raise DataError(
            f"data.batch_size: {config.batch_size} x {world_size} processes x {accumulation} "
            f"accumulated batches is more than the {len(dataset)} training samples"
        )
    batches = TrainingBatches(
        len(dataset),
        config.batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        accumulation=accumulation,
        repeats=repeats,
    )
    return _loader(dataset, batches, config, device)


def evaluation_loader(
    dataset: Dataset,
    config: DataConfig,
    device: torch.device,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """This process's share of the batches, every sample of the data set being in one share."""
    batches = EvaluationBatches(
        len(dataset), config.evaluation_batch_size, rank=rank, world_size=world_size
    )
    return _loader(dataset, batches, config, device)


def read(loader: DataLoader, on_damaged: str) -> Iterator[Batch]:
    """The loader's batches; samples that could not be read are missing from them.

    Under "skip", standard error names each of these once, however often the loader meets it.

    Args:
        on_damaged: As DataConfig has it.

    Raises:
        DataError: a sample could not be read under "error", or not one of a batch under "skip"; or
            a loading process died.
    """
    batches = None
    while True:
        try:
            batches = iter(loader) if batches is None else batches
            batch = _next(batches)
        except (RuntimeError, ConnectionError, EOFError) as error:
            message = dead_worker(error)
            if message is None:
                raise
            raise DataError(message) from error
        if batch is None:
            return
        if batch.damaged and (on_damaged == "error" or batch.samples is None):
            remedy = " (data.on_damaged: skip leaves such samples out)" * (on_damaged == "error")
            more = len(batch.damaged) - 1
            others = f"; likewise {more} more of this batch" if more else ""
            raise DataError(f"cannot read {batch.damaged[0]}{others}{remedy}")
        for damaged in batch.damaged:
            if damaged.sample not in loader.named:
                loader.named.add(damaged.sample)
                tqdm.write(f"left out: {damaged}", file=sys.stderr)  # above a progress bar
        yield batch


def _next(batches: Iterator[Batch]) -> Batch | None:
    try:
        return next(batches, None)
    except (ConnectionError, EOFError):
        # The process that was to hand over this batch is gone. PyTorch's own error, which says how
        # it ended, comes with the signal of its end: waited for, so as not to come later anywhere.
        time.sleep(1)
        raise


def dead_worker(error: RuntimeError | ConnectionError | EOFError) -> str | None:
    """What to say of an error of the loader's where a process of it died; None for other errors.

    PyTorch raises a RuntimeError wherever the program happens to be when the signal arrives.
    """
    signs = ("DataLoader worker", "Pin memory thread")
    if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in signs):
        return None
    reason = one_line(error)
    return f"a data loading process died ({reason}); short of memory? try fewer data.workers"


def collate(samples: list[tuple[Tensor, int] | Damaged]) -> Batch:
    """Stack what could be read."""
    damaged = tuple(sample for sample in samples if isinstance(sample, Damaged))
    intact = [sample for sample in samples if not isinstance(sample, Damaged)]
    if not intact:
        return Batch(None, None, damaged)
    tensors, labels = zip(*intact, strict=True)
    return Batch(torch.stack(tensors), torch.tensor(labels), damaged)


def _loader(
    dataset: Dataset, batches: Sampler[list[Key]], config: DataConfig, device: torch.device
) -> DataLoader:
    workers = loading_processes(config)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        generator=torch.Generator(),  # leaves the global random numbers to training
        num_workers=workers,
        worker_init_fn=functools.partial(_outlive_signals, _leaving()),
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    loader.named = set()  # samples that could not be read, of which the user was told
    return loader


@functools.cache
def _leaving() -> Event:
    """Set when this process exits, before multiprocessing waits for its workers."""
    leaving = multiprocessing.Event()
    atexit.register(leaving.set)
    return leaving


def _outlive_signals(leaving: Event, _worker: int) -> None:
    """A signal to all processes of a job must not take the data from a step to be finished.

    But where the main process exits, SIGTERM is how it ends workers that it could not ask to end.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: leaving.is_set() and os._exit(0))
