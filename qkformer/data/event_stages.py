"""Folders that are made once, file by file: complete or continued, never mistaken for complete."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qkformer.console import Progress
from qkformer.data.source import DataError
from qkformer.files import remove_leftovers


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
            remove_leftovers(stage.partial / name)  # of a process that was killed
        missing = [name for name in wanted if not whole(name, stage.partial / name)]
        print(f"making {stage.folder}: {len(missing)} files", flush=True)
        with Progress(len(missing), stage.folder.name, unit="file") as progress:
            for done in make(stage.partial, missing):
                progress.show(done)
        stage.partial.rename(stage.folder)
    stage.declare_finished()
