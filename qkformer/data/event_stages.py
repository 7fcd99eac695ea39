"""Folders that are made once, file by file: complete or continued, never mistaken for complete."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qkformer.console import SECONDS_BETWEEN_LINES, Progress
from qkformer.data.source import DataError

SECONDS_BEFORE_FIRST_LINE = 5  # of a process that waits


@dataclass(frozen=True)
class Stage:
    """A folder to be made.

    The work is done in `partial`, which becomes `folder` when all files are there; then `mark` says
    how many. So a folder without its mark was made by others (or we were killed just then).

    Attributes:
        folder: Where the files are when finished.
        subfolders: Folders in it, none of which may be empty.
        suffixes: How the names of its files end; others do not count.
    """

    folder: Path
    subfolders: tuple[str, ...]
    suffixes: tuple[str, ...]

    @property
    def partial(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.partial")

    @property
    def mark(self) -> Path:
        # beside the folder: SpikingJelly takes every file in it for a recording
        return self.folder.with_name(f"{self.folder.name}.complete")

    @property
    def unfinished(self) -> Path:
        """What SpikingJelly leaves beside the folder while it makes it."""
        return self.folder.with_name(f"{self.folder.name}.building")

    def files(self) -> list[str]:
        """The files in `folder`, relative to it, in order of subfolders and names."""
        names = []
        for subfolder in self.subfolders:
            path = self.folder / subfolder
            found = sorted(entry.name for entry in os.scandir(path)) if path.is_dir() else []
            names += [
                f"{subfolder}/{name}"
                for name in found
                if name.endswith(self.suffixes) and not name.startswith(".")
            ]
        return names

    def finished(self) -> bool:
        """Whether the folder was finished, by us, and no file has come or gone since."""
        try:
            return int(self.mark.read_text()) == len(self.files()) > 0
        except (OSError, ValueError):  # no mark, or killed while writing it
            return False

    def usable(self) -> bool:
        """Whether the folder looks finished, whoever made it."""
        return bool(self.files()) and not self.unfinished.exists()

    def started(self) -> bool:
        return self.folder.is_dir() or self.partial.is_dir()

    def declare_finished(self) -> None:
        """Write the mark.

        Raises:
            DataError: a subfolder has no files.
        """
        files = self.files()
        filled = {name.rpartition("/")[0] for name in files}
        empty = [name for name in self.subfolders if name not in filled]
        if empty:
            raise DataError(
                f"data.root: {self.folder} should have {len(self.subfolders)} folders with "
                f"{' '.join(self.suffixes)} files, and has none in {', '.join(empty)}"
            )
        self.mark.write_text(str(len(files)))
        self.unfinished.unlink(missing_ok=True)


def complete(
    stage: Stage,
    wanted: Iterable[str],
    whole: Callable[[str, Path], bool],
    make: Callable[[Path, list[str]], Iterator[int]],
) -> None:
    """Make the files of a stage that are not there yet. Only one process at a time may do it.

    Args:
        stage: The folder.
        wanted: Files that it shall have, relative to it.
        whole: Whether such a file is at a path, and not broken off.
        make: Makes some of them in a folder, each whole or not at all, and yields after every step
            how many are done.

    Raises:
        DataError: as `make`, and for a subfolder without files.
    """
    wanted = list(wanted)
    if not all(whole(name, stage.folder / name) for name in wanted):
        if stage.folder.exists():  # made by others and not finished: what there is can be used
            shutil.rmtree(stage.partial, ignore_errors=True)
            stage.folder.rename(stage.partial)
        for name in stage.subfolders:
            (stage.partial / name).mkdir(parents=True, exist_ok=True)
        missing = [name for name in wanted if not whole(name, stage.partial / name)]
        print(f"making {stage.folder}: {len(missing)} files", flush=True)
        with Progress(len(missing), stage.folder.name, unit="file") as progress:
            for done in make(stage.partial, missing):
                progress.show(done)
        stage.partial.rename(stage.folder)
    stage.declare_finished()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path; what the block wrote there takes the place of `path` when it ends well."""
    temporary = path.with_name(f"{path.name}.tmp")  # left behind by a kill, the next try uses it
    yield temporary
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, so that even after a power cut it is there whole or not."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """One process after the other: the others wait, and say so after a while.

    The operating system lets go of the lock when its holder dies, however that happens.

    Raises:
        OSError: the folder cannot be written to.
    """
    with open(folder / ".preparation.lock", "a") as file:
        start = time.monotonic()
        next_line = SECONDS_BEFORE_FIRST_LINE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            if time.monotonic() - start > next_line:
                print(f"waiting for another process that prepares {folder}", flush=True)
                next_line += SECONDS_BETWEEN_LINES
        yield
