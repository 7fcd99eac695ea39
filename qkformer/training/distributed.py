"""The processes of a run: which one this is, what they tell each other, what stops them."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qkformer.text import one_line
from qkformer.training.config import ConfigError

# A process that dies is noticed by its connections or its launcher; these are for what hangs.
TIMEOUT = timedelta(minutes=30)
PREPARATION_TIMEOUT = timedelta(hours=12)  # one machine may prepare its data while others wait
STOPPING = [signal.SIGTERM, signal.SIGINT]
if hasattr(signal, "SIGUSR1"):  # not on Windows
    STOPPING.append(signal.SIGUSR1)


class ProcessError(RuntimeError):
    """The processes of a run cannot reach each other, or no longer; the message is one line."""


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them; of one process unless joined.

    Attributes:
        rank: This process, 0 <= rank < size. Rank 0 writes the files and speaks for all.
        size: Number of processes.
        local_rank: This process among those of its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    # what is on the CPU goes through gloo, so that it never waits for a GPU
    _control: Any = field(default=None, repr=False, compare=False)
    _preparation: Any = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, *lines: str) -> None:
        """Print, in the main process only."""
        if self.is_main and lines:
            print(*lines, sep="\n", flush=True)

    def wait_for_data(self) -> None:
        """Until all processes have come here, for hours if need be; signals are handled."""
        if self.size > 1:
            work = dist.all_reduce(torch.tensor(0), group=self._preparation, async_op=True)
            while not work.is_completed():
                time.sleep(0.1)
            work.wait()

    def largest(self, *values: int) -> Callable[[], list[int]]:
        """The largest of all processes' values, each by itself; nobody waits yet.

        Every process must call it, as all below.

        Returns:
            What waits until all have called, and gives them.
        """
        if self.size == 1:
            return lambda: list(values)
        tensor = torch.tensor(values)
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._control, async_op=True)

        def result() -> list[int]:
            work.wait()
            return tensor.tolist()

        return result

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
        shared = [result[0], _portable(result[1])]
        dist.broadcast_object_list(shared, src=0, group=self._control)
        error = result[1] or shared[1]
        if error is not None:
            raise error
        return shared[0]

    def share(self, *tensors: Tensor) -> None:
        """Give every process the main one's values of these tensors, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's running statistics: they are those that are saved."""
        self.share(*model.buffers())


def _portable(error: Exception | None) -> Exception | None:
    """The error, or where other processes could not rebuild it, one that says the same."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # an exception's own __init__ or attributes may raise anything
        return RuntimeError(f"{type(error).__name__}: {one_line(error)}")


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
    """Connect the processes; one that ends with an error does not wait for the others.

    Raises:
        ProcessError: they do not find each other, or cannot work together.
    """
    if world.size == 1:
        yield world
        return
    options = {"device_id": device} if device.type == "cuda" else {}
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=world.rank,
            world_size=world.size,
            timeout=TIMEOUT,
            store=_store(world),
            **options,
        )
        control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        preparation = dist.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT)
    except (RuntimeError, ValueError) as error:  # gloo's have no type of their own
        raise ProcessError(f"the processes cannot connect: {one_line(error)}") from error
    yield World(world.rank, world.size, world.local_rank, control, preparation)
    dist.destroy_process_group()


_JOINS = count()


def _store(world: World) -> dist.Store | None:
    """Where processes leave each other their addresses; None for PyTorch's own choice.

    torchrun keeps one store over its restarts (2.14), in which workers would find the addresses of
    those before them. TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes it begin anew, on any number of
    nodes; of one node, the number of restarts tells the workers apart. So does the number of times
    that these have joined, as one run after the other does in a study.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=TIMEOUT))
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"{restarts}/{next(_JOINS)}", store)


def lost_process(error: RuntimeError) -> str | None:
    """What to say of an error that only reports another process's end; None for other errors.

    gloo's errors have no type and NCCL's no code: their words are all there is.
    """
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    if not any(sign in text for sign in (*signs, "ncclRemoteError")):
        return None
    return f"lost another process, whose own message says why ({one_line(error)})"


# --------------------------------------------------------------------------------- stopping


class Stopped(BaseException):
    """A run stopped as it was asked to, nothing is lost; the message is one line.

    Raised wherever the main thread happens to be, and like KeyboardInterrupt no Exception: what
    calls a file damaged at any error in reading it must let it pass.
    """


class StopRequest:
    """While its `with` block runs, stopping signals raise Stopped instead of ending the process.

    From the first one or `remember` on they are remembered only. A second Ctrl-C ends it all the
    same (KeyboardInterrupt). Under torchrun the end of torchrun itself counts as a signal: it takes
    its workers along only where it handles what ended it. Outside the main thread, which is the
    only one that Python lets handle signals, it does nothing.

    Attributes:
        received: Name of the first signal that came, None before.
    """

    received: str | None = None
    _at_once, _is_orphan = True, False

    def __enter__(self) -> "StopRequest":
        may_handle = threading.current_thread() is threading.main_thread()
        numbers = STOPPING if may_handle else ()
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        self._left, self._launcher = threading.Event(), os.getppid()
        if may_handle and "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=self._watch_launcher, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def remember(self) -> None:
        """From here on there is something to save first."""
        self._at_once = False

    def _watch_launcher(self) -> None:
        while not self._left.wait(1):
            if os.getppid() != self._launcher:
                self._is_orphan = True
                return os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        name = "the end of its launcher" if self._is_orphan else signal.Signals(number).name
        is_first, self.received = not self.received, self.received or name
        if self._at_once and is_first:
            raise Stopped(
                f"stopped by {self.received} before training began: the same command goes on"
            )
