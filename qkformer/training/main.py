"""train.py and test.py, which every data set's folder has: the doors, and how they close."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qkformer.data.loaders import dead_worker
from qkformer.data.source import DataError
from qkformer.files import FileError
from qkformer.training.command_line import parse_test, parse_train, parse_trained
from qkformer.training.config import ConfigError
from qkformer.training.distributed import (
    STOPPING,
    ProcessError,
    Stopped,
    StopRequest,
    World,
    announced,
    lost_process,
)
from qkformer.training.evaluate import run_test
from qkformer.training.metrics import TrainingError
from qkformer.training.train import run_training

FAILED, WRONG, STOPPED, INTERRUPTED = 1, 2, 75, 130  # exit statuses; 75 is sysexits' TEMPFAIL


def train(default_config: Path | None, argv: Sequence[str] | None = None) -> None:
    """train.py: train a model as configured, in a folder from which it can go on.

    Args:
        default_config: YAML file that applies unless the command line names another; None where it
            has to.
        argv: The command line, sys.argv[1:] unless given.

    Raises:
        SystemExit: with one line and status 2 where something given is wrong, 1 where training
            failed, 75 where a signal stopped it and nothing is lost, 130 after Ctrl-C twice.
    """
    # Signals are handled to the end: once a process has ended with 75, srun sends the others one.
    with StopRequest() as stop, errors_in_one_line("--resume auto goes on"):
        run_training(*parse_train(default_config, argv), stop)


def test(default_config: Path | None, argv: Sequence[str] | None = None) -> None:
    """test.py: measure a checkpoint on the whole test set. Arguments and exits as for `train`."""
    with errors_in_one_line("nothing is written"):
        run_test(*(parse_test(default_config, argv) if default_config else parse_trained(argv)))


@contextmanager
def errors_in_one_line(if_interrupted: str) -> Iterator[None]:
    """Say in one line what users can put right or stop themselves, without a traceback; exit."""
    try:
        yield
    except (ConfigError, DataError, FileError) as error:
        _exit(WRONG, f"error: {error}")
    except (TrainingError, ProcessError) as error:
        _exit(FAILED, f"error: {error}")
    except Stopped as stopped:
        _exit(STOPPED, str(stopped))
    except KeyboardInterrupt:
        _exit(INTERRUPTED, f"interrupted; {if_interrupted}")
    except RuntimeError as error:
        dead, lost = dead_worker(error), lost_process(error)
        if dead or lost:
            _exit(WRONG if dead else FAILED, f"error: {dead or lost}")
        _raise(error)
    except Exception as error:
        _raise(error)


def _exit(status: int, message: str) -> None:
    world = _announced()
    if world.size == 1:
        print(message, file=sys.stderr)
        raise SystemExit(status)
    if not world.is_main:
        if status == STOPPED:
            os._exit(status)
        # What is wrong for all is said once: the launcher ends the others when one has ended.
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        time.sleep(2)
    print(f"process {world.rank}: {message}", file=sys.stderr, flush=True)
    os._exit(status)  # an orderly exit could wait for processes that are no more


def _raise(error: Exception) -> None:
    """Of an error that nobody expected, everything is shown."""
    if _announced().size == 1:
        raise error
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(FAILED)


def _announced() -> World:
    try:
        return announced()
    except ConfigError:  # which is what is being said
        return World()
