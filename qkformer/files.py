"""Files on disk: written whole or not at all, by one process at a time."""

import errno
import os
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from qkformer.text import first_sentence

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


SECONDS_BEFORE_FIRST_LINE, SECONDS_BETWEEN_LINES = 5, 60  # of a process that waits


class FileError(RuntimeError):
    """A file cannot be read or written; the message is one line that says which and why."""


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and vanishes otherwise.

    A reader sees the old file or the new one, never a part, even after a power cut.

    Raises:
        FileError: the folder is missing, not writable or full; `path` is as it was before.
    """
    path = Path(path)
    if path.is_dir():
        raise FileError(f"cannot write {path}: it is a folder")
    # A name of its own for every writer: two that share one would interleave their bytes.
    # Not tempfile.mkstemp, which would leave the result readable by its owner alone.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
        publish(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # it may never have been there; the first error is the one to tell
            temporary.unlink()
        if isinstance(error, OSError):
            raise FileError(f"cannot write {path}: {first_sentence(error)}") from error
        raise


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name: even after a power cut it is there whole or not at all.

    Raises:
        OSError: it cannot be written to the disk or renamed.
    """
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    with suppress(OSError):  # Windows cannot open folders, some file systems cannot write them
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # where the name is
        finally:
            os.close(folder)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text, whole or not at all. Raises FileError as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Delete the temporary files of writers that were killed. Only for the folder's one writer."""
    for leftover in Path(folder).glob(".*." + "[0-9a-f]" * 8 + ".tmp"):
        leftover.unlink(missing_ok=True)


class Lock:
    """Keeps other processes out, on any machine that sees the file, until it is released.

    The operating system releases the lock of a process that ends, however that happens. On POSIX,
    processes that this one forks do not inherit it: loading processes may outlive a run that is
    killed by seconds. Within one process it locks nobody out.

    Args:
        path: File to lock, which is created and stays.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._file: BinaryIO | None = None

    def take(self) -> bool:
        """Whether the lock is now this process's.

        Where the file system knows no locks, a warning says so, and it is.

        Raises:
            OSError: the file cannot be created.
        """
        file = open(self.path, "ab")  # noqa: SIM115, as long as the lock
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                file.close()
                return False
            reason = first_sentence(error)
            # the same words are shown once, whoever asks how often
            warnings.warn(
                f"{self.path.parent}: files cannot be locked there ({reason}), so that nothing "
                "keeps another process from writing at the same time",
                stacklevel=2,
            )
        self._file = file
        return True

    def release(self) -> None:
        """Let others in; does nothing where the lock was not taken."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def one_at_a_time(path: str | os.PathLike, task: str) -> Iterator[None]:
    """One process after the other: the others wait, and after a while say for what.

    Args:
        path: File to lock, which is created and stays.
        task: What the one is doing: "prepares /data/gesture".

    Raises:
        OSError: the file cannot be created.
    """
    lock, start, next_line = Lock(path), time.monotonic(), SECONDS_BEFORE_FIRST_LINE
    while not lock.take():
        time.sleep(0.1)
        if time.monotonic() - start > next_line:
            print(f"waiting for another process that {task}", flush=True)
            next_line += SECONDS_BETWEEN_LINES
    try:
        yield
    finally:
        lock.release()


def append_lines(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Add lines to a file of text, each whole, also where other processes add theirs.

    Raises:
        FileError: the file cannot be written.
    """
    path = Path(path)
    try:
        with one_at_a_time(path.with_name(f".{path.name}.lock"), f"writes {path}"):
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            write_text(path, before + "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise FileError(f"cannot write {path}: {first_sentence(error)}") from error
