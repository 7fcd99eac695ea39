"""From recordings as they are published to files of frames: once, and on from where it stopped.

Three stages, each with a folder in the data set's root, named as SpikingJelly names them:

    download/*.zip, *.tar.gz -> extract -> events_np -> frames_number_<T>_split_by_number

A stage is made only when what comes after it is missing or incomplete.
"""

import errno
import os
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qkformer.data.event_formats import EventFormat, Piece
from qkformer.data.event_stages import Stage, complete
from qkformer.data.samples import DAMAGE, DAMAGE_OR_BUG
from qkformer.data.source import DataError
from qkformer.files import FileError, one_at_a_time, publish, replacing
from qkformer.text import one_line

SIZE = 128  # height and width of both data sets, in pixels
THREADS = min(8, os.cpu_count() or 1)


def prepare_frames(root: Path, format: EventFormat, T: int) -> Path:
    """Make sure that there are frames of all recordings.

    When several processes want it at once, one does the work and the others wait. Finished frames
    are not written to, so that they may be read-only.

    Args:
        root: Folder of the data set, in which at least one of the folders above is complete.
        format: The data set.
        T: Frames per recording, all with the same number of events (the last has the rest as well).

    Returns:
        The folder of the frames: <class>/<recording>.npz with `frames`, [T, 2, 128, 128].

    Raises:
        DataError: recordings are missing or damaged, or the folder cannot be written to.
        FileError: a file cannot be written, as on a full disk.
    """
    preparation = Preparation(root, format, T)
    if preparation.frames.finished():
        return preparation.frames.folder
    try:
        if root.is_dir():
            with one_at_a_time(root / ".preparation.lock", f"prepares {root}"):
                preparation.make_frames()
        else:
            preparation.say_what_is_missing(list(format.archives()))
    except OSError as error:
        read_only = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if not (read_only and preparation.frames_look_finished()):
            raise DataError(f"data.root: cannot prepare {root}: {error}") from error
    return preparation.frames.folder


class Preparation:
    """The stages of a data set; see `prepare_frames`."""

    def __init__(self, root: Path, format: EventFormat, T: int) -> None:
        self.root, self.format, self.T = root, format, T
        frames = f"frames_number_{T}_split_by_number"
        self.frames = Stage(root / frames, format.classes, (".npz",))
        self.events = Stage(root / "events_np", format.classes, (".npz",))
        self.extract = Stage(root / "extract", format.extracted, (".aedat", ".csv", ".txt"))

    def make_frames(self) -> None:
        if self.frames.finished():  # by the process that we waited for
            return
        if self.frames.usable() and not self.events.started():
            return self.frames.declare_finished()
        self.make_events()
        complete(self.frames, self.events.files(), _whole_npz, self._integrate)

    def frames_look_finished(self) -> bool:
        """Whether there are frames of all recordings, whoever made them."""
        return self.frames.usable() and set(self.events.files()) <= set(self.frames.files())

    def make_events(self) -> None:
        if self.events.finished():
            return
        if self.events.usable() and not self.extract.started():
            return self.events.declare_finished()
        self.make_extract()
        pieces = self.format.pieces(self.extract.folder)
        wanted = [name for piece in pieces for name in piece.files]
        complete(
            self.events,
            wanted,
            _whole_npz,
            lambda folder, missing: self._convert(pieces, folder, missing),
        )

    def make_extract(self) -> None:
        if self.extract.finished():
            return
        archives = [self.root / "download" / name for name in self.format.archives()]
        absent = [path.name for path in archives if not path.is_file()]
        if absent:
            # SpikingJelly has one marker for both stages; events_np is there once the second began
            unfinished = self.events.unfinished.exists() and not self.events.started()
            if unfinished or not self.extract.files():
                self.say_what_is_missing(absent)
            return self.extract.declare_finished()
        sizes = {}
        for archive in archives:
            if archive.suffix != ".zip":  # a zip has a list of its files, a tar is read to its end
                print(f"reading {archive}", flush=True)
            with self._blaming(archive):
                sizes |= {name: size for name, size, _ in self.format.members(archive)}
        complete(
            self.extract,
            sizes,
            lambda name, path: path.is_file() and path.stat().st_size == sizes[name],
            lambda folder, missing: self._unpack(archives, folder, missing),
        )

    def say_what_is_missing(self, absent: list[str]) -> None:
        archives = self.format.archives()
        files = "; ".join(f"{name} ({archives[name]})" for name in absent)
        raise DataError(
            f"data.root: {self.root} has no complete {self.format.name}: neither "
            f"{self.frames.folder.name} nor events_np nor extract, and in its folder download "
            f"these files are missing: {files}"
        )

    def _unpack(self, archives: list[Path], folder: Path, missing: list[str]) -> Iterator[int]:
        todo = set(missing)
        for archive in archives:
            with self._blaming(archive):
                for name, _, opener in self.format.members(archive):
                    if name in todo:
                        content = opener().read()
                        with replacing(folder / name) as target:
                            target.write(content)
                        todo.discard(name)
                        yield len(missing) - len(todo)

    @contextmanager
    def _blaming(self, archive: Path) -> Iterator[None]:
        """Say which archive is damaged. Their checksums are checked as they are read."""
        try:
            yield
        except (*DAMAGE, *DAMAGE_OR_BUG, OSError) as error:
            if isinstance(error, FileError) or getattr(error, "errno", None) is not None:
                raise  # the disk; gzip's own errors have no number
            raise DataError(
                f"data.root: {archive} is damaged ({one_line(error)}); get it again: "
                f"{self.format.archives()[archive.name]}"
            ) from error

    def _convert(self, pieces: list[Piece], folder: Path, missing: list[str]) -> Iterator[int]:
        """Let SpikingJelly convert piece by piece: alone it would start again from the first."""
        todo = set(missing)
        work = folder / ".piece"
        for piece in pieces:
            if todo.isdisjoint(piece.files):
                continue
            shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
            for name, content in piece.view.items():
                path = work / "view" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    path.symlink_to(content.absolute())
                else:
                    path.write_text(content)
            (work / "events").mkdir()
            try:
                self.format.library().create_raw_from_extracted(work / "view", work / "events")
            except (*DAMAGE, *DAMAGE_OR_BUG) as error:
                source = next(path for path in piece.view.values() if isinstance(path, Path))
                raise DataError(
                    f"data.root: cannot convert {source}, or what was to be converted with it: "
                    f"{one_line(error)}"
                ) from error
            for name in todo.intersection(piece.files):
                publish(work / "events" / name, folder / name)
            todo.difference_update(piece.files)
            yield len(missing) - len(todo)
        shutil.rmtree(work, ignore_errors=True)

    def _integrate(self, folder: Path, missing: list[str]) -> Iterator[int]:
        executor = ThreadPoolExecutor(THREADS)
        try:
            names = executor.map(lambda name: self._integrate_one(folder, name), missing)
            for done, _ in enumerate(names, start=1):
                yield done
        finally:
            executor.shutdown(cancel_futures=True)  # an error or Ctrl-C must not wait for the rest

    def _integrate_one(self, folder: Path, name: str) -> None:
        from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number

        source = self.events.folder / name
        try:
            with np.load(source) as file:
                events = {key: file[key] for key in "txyp"}
            frames = integrate_events_by_fixed_frames_number(events, "number", self.T, SIZE, SIZE)
        except (*DAMAGE, *DAMAGE_OR_BUG) as error:
            raise DataError(f"data.root: {source} is damaged: {one_line(error)}") from error
        # a quarter of the bytes to read in every epoch; too large counts are left for the reader
        dtype = np.int16 if frames.max() <= np.iinfo(np.int16).max else np.int64
        with replacing(folder / name) as file:
            np.savez_compressed(file, frames=frames.astype(dtype))


def _whole_npz(_: str, path: Path) -> bool:
    return zipfile.is_zipfile(path)  # its directory is written last, and cheap to look for
