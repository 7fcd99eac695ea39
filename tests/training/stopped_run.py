"""train.py on a few images, made to send itself a signal at a given point; for test_stops.py.

    SIGNAL_AT="rank:point:n:SIGNAL ..." python stopped_run.py CONFIG [options of train.py]

`n` counts the calls of the point, from 1; the signal comes before the n-th is carried out. In place
of a signal, ERROR raises an error there, and PAUSE waits until a signal comes. Under torchrun, what
a place says holds for the first start of a worker, not for those that take its place.
"""

import atexit
import itertools
import os
import signal
import socket
import sys
import time
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from training.few import register

from qkformer.data.source import DataError
from qkformer.training import distributed, main
from qkformer.training.checkpointing import Checkpoints

POINTS = {
    "step": (Checkpoints, "due"),  # behind every step and every test batch
    "best": (Checkpoints, "write_best"),
    "rename": (os, "replace"),
    "sleep": (time, "sleep"),
    "wait": (distributed.World, "wait_for_data"),
    "exit": (os, "_exit"),  # of a process among several
}


def pause(stop):
    """Until a signal comes, which raises; or, where it is remembered by `stop`, has come."""
    while stop is None or not stop.received:
        time.sleep(0.01)


def signal_at(rank, point, number, name):
    if rank != os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")):
        return
    owner, attribute = POINTS[point]
    real, calls = getattr(owner, attribute), itertools.count(1)  # threads may call it

    def counting(*arguments, **options):
        if next(calls) == int(number):
            if name == "ERROR":
                raise DataError("a folder is gone")
            if name == "PAUSE":
                return pause(getattr(arguments[0], "stop", None))
            os.kill(os.getpid(), getattr(signal, name))
        return real(*arguments, **options)

    setattr(owner, attribute, counting)


def train(config, argv):
    torch.set_num_threads(1)
    register()
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        for place in os.environ.get("SIGNAL_AT", "").split():
            signal_at(*place.split(":"))
    main.train(Path(config), argv)


def _in_process(folder, argv, environment, name):
    """As the script, in a process that has everything imported already."""
    for stream in ("stdout", "stderr"):
        target = os.open(folder / f"{name}.{stream}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(target, getattr(sys, stream).fileno())
    set_start_method("fork", force=True)  # of loading processes, as in a process of its own
    os.chdir(folder)
    os.environ.update(environment)
    try:
        train("few.yml", argv)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out, and loading processes wait for


def start(folder, argv, environments, *, launched=False):
    """Processes, one for each environment, until they have ended: exit codes and what they said.

    Forked by a server that has imported everything, which takes a process of its own seconds. Where
    they are `launched`, the end of one is a SIGTERM to the others, as from torchrun and srun.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["training.stopped_run"])
    names = [f"process{number}" for number in range(len(environments))]
    processes = [
        context.Process(target=_in_process, args=(folder, argv, environment, name))
        for name, environment in zip(names, environments, strict=True)
    ]
    for process in processes:
        process.start()
    if launched:
        wait([process.sentinel for process in processes], timeout=240)
        for process in processes:
            process.terminate()
    for process in processes:
        process.join(240)
        process.kill()
    texts = {
        stream: "".join((folder / f"{name}.{stream}").read_text() for name in names)
        for stream in ("stdout", "stderr")
    }
    return SimpleNamespace(codes=[process.exitcode for process in processes], **texts)


def announcement(names, rank, size, port):
    """How a launcher tells a process its place."""
    values = (str(rank), str(size), str(rank))
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **dict(zip(names, values, strict=True)),
    }


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2:])
