"""Loading processes: what ends them, what does not, and what is said when one has died."""

import importlib
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from data.numbered import CPU, Numbers, config, values
from torch.utils.data._utils import worker as worker_loop

import qkformer.data
from qkformer.data.loaders import Batch, dead_worker, evaluation_loader, read, training_loader
from qkformer.data.samples import Samples
from qkformer.data.source import DataError


def test_a_loading_process_that_is_killed_is_said_to_be():
    loader = evaluation_loader(Samples(Numbers(deadly=9)), config(workers=1), CPU)
    # PyTorch raises when the signal arrives: mostly, but not always, while a batch is waited for
    with pytest.raises((DataError, RuntimeError)) as died:
        values(loader)
    error = died.value
    message = str(error) if isinstance(error, DataError) else dead_worker(error)
    assert message.startswith("a data loading process died")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_a_loading_process_killed_while_it_hands_over_a_batch_is_said_to_be(error, monkeypatch):
    waited = []
    monkeypatch.setattr("qkformer.data.loaders.time.sleep", waited.append)

    def batches():
        yield Batch(torch.ones(2, 1), torch.ones(2), ())
        raise error

    with pytest.raises(DataError, match="a data loading process died"):
        list(read(batches(), "error"))
    assert waited  # for the signal that says how it died


UNEXPECTED = """
import sys, types
package = sys.modules["qkformer"] = types.ModuleType("qkformer")
package.__path__ = [sys.argv[1]]  # without the models, whose import would take most of the time
from torch.utils.data import TensorDataset
import torch
from qkformer.data.loaders import read, training_loader
from qkformer.data.samples import Samples
from qkformer.data.source import DataConfig

data = Samples(TensorDataset(torch.zeros(40, 1), torch.arange(40)))
config = DataConfig("digits", image_size=8, batch_size=4, workers=2)
for batch in read(training_loader(data, config, torch.device("cpu"), seed=0), "error"):
    raise RuntimeError("out of memory")
"""


def test_an_unexpected_error_ends_loading_processes_too():
    """... which are still waiting for the next batch, as the traceback keeps the loader alive."""
    done = subprocess.run(
        [sys.executable, "-c", UNEXPECTED, *qkformer.__path__],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: out of memory"


def test_loading_processes_outlive_the_signals_that_stop_a_run():
    loader = training_loader(Samples(Numbers(40)), config(workers=2), CPU, seed=0)
    batches = read(loader, "error")
    seen = [next(batches), next(batches)]  # of either: it is past its start
    for worker in loader._iterator._workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(worker.pid, number)
    assert len([*seen, *batches]) == 10


def load_until_killed(pids):
    loader = training_loader(Samples(Numbers(40)), config(workers=2), CPU, seed=0)
    next(read(loader, "error"))
    for worker in loader._iterator._workers:
        pids.put(worker.pid)
    time.sleep(240)


def ended(pid):
    """Whether a process is gone, or would be if the container's first process saw to it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_loading_processes_end_when_the_process_they_load_for_is_killed(monkeypatch):
    """They look for it between two batches, by themselves every five seconds."""
    monkeypatch.setattr(worker_loop, "MP_STATUS_CHECK_INTERVAL", 0.1)
    processes = multiprocessing.get_context("fork")
    pids = processes.Queue()
    training = processes.Process(target=load_until_killed, args=(pids,))
    training.start()
    loading = [pids.get(timeout=240) for _ in range(2)]
    assert not any(map(ended, loading))
    os.kill(training.pid, signal.SIGKILL)
    training.join()
    deadline = time.monotonic() + 240
    while not all(map(ended, loading)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def load_on_windows():
    """As well as it can be had elsewhere: neither modules nor signals of POSIX."""
    for name in list(sys.modules):
        if name.startswith(("qkformer.data", "qkformer.files", "qkformer.console")):
            del sys.modules[name]
    locking = types.SimpleNamespace(locking=lambda *_: None, LK_NBLCK=2)
    sys.modules.update(fcntl=None, resource=None, msvcrt=locking)
    del signal.SIGUSR1
    for module in pkgutil.iter_modules(qkformer.data.__path__):
        importlib.import_module(f"qkformer.data.{module.name}")
    loaders = importlib.import_module("qkformer.data.loaders")
    samples = importlib.import_module("qkformer.data.samples").Samples(Numbers(8))
    loader = loaders.evaluation_loader(samples, config(workers=1), CPU)
    assert [batch.targets.tolist() for batch in loaders.read(loader, "error")] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]


def test_data_can_be_loaded_without_the_modules_and_signals_that_windows_lacks():
    process = multiprocessing.get_context("fork").Process(target=load_on_windows)
    process.start()
    process.join()
    assert process.exitcode == 0
