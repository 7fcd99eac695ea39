"""The processes of a run: which one this is, and what they tell each other besides gradients."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qkformer.training.config import ConfigError

# A process that dies is noticed by its connections or its launcher; these are for what hangs.
TIMEOUT = timedelta(minutes=30)
CONTROL_TIMEOUT = timedelta(hours=12)  # one machine may prepare its data while others wait


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them; of one process unless joined.

    Attributes:
        rank: This process, 0 <= rank < size. Rank 0 writes the files and speaks for all.
        size: Number of processes.
        local_rank: This process among those of its machine; the index of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    # what is on the CPU goes through gloo, so that it never waits for a GPU
    _control: Any = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, *lines: str) -> None:
        """Print, in the main process only."""
        if self.is_main and lines:
            print(*lines, sep="\n", flush=True)

    def wait(self) -> None:
        """Until all processes have come here; as long as that may take, signals are handled."""
        if self.size > 1:
            work = dist.all_reduce(torch.tensor(0), group=self._control, async_op=True)
            while not work.is_completed():
                time.sleep(0.1)
            work.wait()

    def largest(self, value: int) -> int:
        """The largest of all processes' values. Every process must call it, as all below."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._control)
        return int(tensor)

    def total(self, values: Tensor) -> Tensor:
        """Sum of all processes' tensors, on the CPU."""
        values = values.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(values, group=self._control)
        return values

    def gather(self, value: Any) -> list[Any]:
        """All processes' values, by rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def first(self, action: Callable[[], Any]) -> Any:
        """What `action` returns or raises in the main process, which alone calls it."""
        if self.size == 1:
            return action()
        result = [None, None]
        if self.is_main:
            try:
                result[0] = action()
            except Exception as error:
                result[1] = error
        dist.broadcast_object_list(result, src=0, group=self._control)
        if result[1] is not None:
            raise result[1]
        return result[0]

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's running statistics: they are those that are saved."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


def announced(environment: Mapping[str, str] = os.environ) -> World:
    """This process's place as its launcher announces it: torchrun, launch, srun, or none of them.

    Raises:
        ConfigError: the announcement is incomplete.
    """
    if "RANK" in environment:  # torchrun, python -m torch.distributed.launch
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return World()
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not set: processes find each other through them; torchrun sets "
            "them, under srun the batch script has to (see configs/slurm/)"
        )
    rank, size, local_rank = (int(environment[name]) for name in names)
    return World(rank, size, local_rank)


@contextmanager
def joined(world: World, device: torch.device) -> Iterator[World]:
    """Connect the processes; one that ends with an error does not wait for the others."""
    if world.size == 1:
        yield world
        return
    options = {"device_id": device} if device.type == "cuda" else {}
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        rank=world.rank,
        world_size=world.size,
        timeout=TIMEOUT,
        **options,
    )
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    yield World(world.rank, world.size, world.local_rank, control)
    dist.destroy_process_group()
