"""Preparing event data: cut short at any moment, by several processes, from what others made."""

import errno
import functools
import multiprocessing
import os
import shutil
import signal
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import spikingjelly.datasets.utils
from data.event_roots import BOTH, STAGES, assert_correct, frames_folder, load

from qkformer import files
from qkformer.data import event_preparation
from qkformer.data.source import DataError
from qkformer.files import FileError

pytestmark = pytest.mark.usefixtures("no_fsync")
both = pytest.mark.parametrize("name", BOTH)


def in_another_process(function, *args):
    """Start it; forked, since importing PyTorch again would take most of the time."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def patch_publish(function):
    """Replace what gives files their names."""
    files.publish = event_preparation.publish = function


class Killer:
    """Kills this process just before its n-th step: a file, or a folder, getting its name."""

    def __init__(self, steps):
        self.left = steps
        patch_publish(self.counted(files.publish))
        for place, name in (
            (Path, "rename"),
            (Path, "write_text"),
            (Path, "unlink"),
            (np, "savez_compressed"),
            (spikingjelly.datasets.utils, "np_savez"),
        ):
            setattr(place, name, self.counted(getattr(place, name)))

    def counted(self, function):
        @functools.wraps(function)
        def step(*args, **options):
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return function(*args, **options)

        return step


def prepare_until_killed(name, root, steps):
    Killer(steps)
    load(name, root)


@both
def test_killed_again_and_again_it_goes_on_to_the_end(name, prepared):
    root, written = prepared(name, ["download"])
    for attempts in range(1, 20):  # noqa: B007
        process = in_another_process(prepare_until_killed, name, root, 20)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0 and attempts > 3
    assert_correct(load(name, root), written, root)
    left = {path.name for path in root.iterdir() if not path.name.endswith(".complete")}
    assert left == {*STAGES, ".preparation.lock"}
    hidden = [path for stage in STAGES for path in (root / stage).rglob(".*")]
    assert not hidden  # SpikingJelly takes every file for a recording


@both
@pytest.mark.parametrize("steps", [0, 9, 50])
def test_killed_at_any_moment_the_next_start_completes_it(name, prepared, steps):
    root, written = prepared(name, ["download"])
    process = in_another_process(prepare_until_killed, name, root, steps)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert_correct(load(name, root), written, root)


@both
def test_what_was_done_is_not_done_again(name, prepared, monkeypatch):
    root, _ = prepared(name, ["events_np"])
    made = []
    monkeypatch.setattr(
        event_preparation.Preparation,
        "_integrate_one",
        stop_after(10, made, event_preparation.Preparation._integrate_one),
    )
    with pytest.raises(KeyboardInterrupt):
        load(name, root)
    assert len(made) >= 10
    load(name, root)
    total = len(list(frames_folder(root).rglob("*.npz")))
    assert len(made) == len(set(made)) == total  # each once, over both attempts


def stop_after(count, made, function):
    """As if the user pressed Ctrl-C, once."""
    raised = []

    def wrapped(self, folder, name):
        if len(made) >= count and not raised:
            raised.append(True)
            raise KeyboardInterrupt
        function(self, folder, name)
        made.append(name)

    return wrapped


def prepare_and_note(name, root, log, start):
    original = files.publish

    def noting(temporary, path):
        with open(log, "a") as file:
            file.write(f"{path}\n")
        original(temporary, path)

    patch_publish(noting)
    start.wait()
    load(name, root)


def test_processes_that_start_at_once_prepare_once(prepared, tmp_path):
    name, log = "cifar10-dvs", tmp_path / "log"
    root, written = prepared(name, ["download"])
    start = multiprocessing.get_context("fork").Barrier(3)
    processes = [in_another_process(prepare_and_note, name, root, log, start) for _ in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    published = log.read_text().splitlines()
    assert len(published) == len(set(published)) > 2 * len(written)
    assert_correct(load(name, root), written, root)


def test_a_file_system_without_locks_is_said_once_and_holds_nothing_up(prepared, monkeypatch):
    root, written = prepared("cifar10-dvs", ["events_np"])

    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(files.fcntl, "lockf", unsupported)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")  # as users have it: the same words once
        for T in (1, 2):
            load("cifar10-dvs", root, T)
    assert len(told) == 1
    assert f"{root}: files cannot be locked there" in str(told[0].message)
    assert_correct(load("cifar10-dvs", root, 2), written, root, 2)


@both
@pytest.mark.parametrize("kept", STAGES[1:])
def test_folders_made_by_others_are_accepted(name, prepared, kept):
    root, written = prepared(name, [kept])
    assert_correct(load(name, root), written, root)
    assert frames_folder(root).with_name(f"{frames_folder(root).name}.complete").exists()


@both
@pytest.mark.parametrize("last", [1, 2, 3])
@pytest.mark.parametrize("marker", [False, True])
def test_folders_that_others_left_unfinished_are_completed(name, prepared, last, marker):
    """As SpikingJelly 1 (without marker) and 2 leave them when killed."""
    root, written = prepared(name, STAGES[: last + 1])
    unfinished = sorted(path for path in (root / STAGES[last]).rglob("*.*") if path.is_file())
    unfinished[-1].unlink()
    unfinished[0].write_bytes(unfinished[0].read_bytes()[:-9])
    building = root / f"{STAGES[max(last, 2)]}.building"
    if marker:
        building.touch()
    assert_correct(load(name, root), written, root)
    assert not building.exists()


@both
def test_an_unfinished_folder_without_what_it_was_made_of_is_not_taken(name, prepared):
    root, _ = prepared(name, STAGES[3:])
    (root / f"{STAGES[3]}.building").touch()
    with pytest.raises(DataError, match="has no complete"):
        load(name, root)


@both
@pytest.mark.parametrize("made_by", ["us", "others"])
def test_finished_frames_can_be_read_only(name, prepared, monkeypatch, made_by):
    root, written = prepared(name, STAGES[2:], marks=made_by == "us")

    def refuse(*_):  # file permissions do not stop root, as which tests may run
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(event_preparation, "one_at_a_time", refuse)
    assert_correct(load(name, root), written, root)
    with pytest.raises(DataError, match=r"cannot prepare .*Permission denied"):
        load(name, root, 5)
    if made_by == "others":
        next(frames_folder(root).rglob("*.npz")).unlink()
        with pytest.raises(DataError, match="cannot prepare"):
            load(name, root)


def test_files_that_vanish_later_are_made_again(prepared):
    root, written = prepared("cifar10-dvs", marks=True)
    for stage in STAGES[1:]:
        shutil.rmtree(root / stage / "bird")
    assert_correct(load("cifar10-dvs", root), written, root)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_full_disk_is_not_taken_for_damage(prepared, monkeypatch, stage):
    root, _ = prepared("cifar10-dvs", STAGES[: STAGES.index(stage)])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((DataError, FileError), match="No space left on device") as error:
        load("cifar10-dvs", root)
    assert "damaged" not in str(error.value)


@both
@pytest.mark.parametrize("there", ["nothing", "a folder", "a folder download"])
def test_missing_data_are_one_line_that_says_what_to_get(name, tmp_path, there):
    root = tmp_path / "root"
    if there != "nothing":
        (root / ("download" if there.endswith("download") else "")).mkdir(parents=True)
    with pytest.raises(DataError) as error:
        load(name, root)
    message = str(error.value)
    assert message.startswith(f"data.root: {root}") and "\n" not in message
    archive = "DvsGesture.tar.gz" if name == "dvs128-gesture" else "airplane.zip"
    assert f"{archive} (https://" in message and "md5" in message


def test_only_the_missing_archives_are_named(prepared):
    root, _ = prepared("cifar10-dvs", ["download"])
    (root / "download" / "bird.zip").unlink()
    with pytest.raises(DataError, match=r"missing: bird\.zip \(https://[^;]*$"):
        load("cifar10-dvs", root)


@both
def test_a_damaged_archive_is_named_and_kept(name, prepared):
    root, _ = prepared(name, ["download"])
    archive = sorted((root / "download").iterdir())[0]
    whole = archive.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], whole[:middle] + b"?" + whole[middle + 1 :]):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{archive.name} is damaged") as error:
            load(name, root)
        assert "https://" in str(error.value)
    archive.write_bytes(whole)
    load(name, root)


def test_classes_without_files_are_named(prepared):
    root, _ = prepared("cifar10-dvs", ["download"])
    with zipfile.ZipFile(root / "download" / "cat.zip", "w") as archive:
        archive.writestr("cats/cifar10_cat_0.aedat", b"")
    with pytest.raises(DataError, match=r"should have 10 folders .* none in cat$"):
        load("cifar10-dvs", root)


def test_a_trial_without_its_recording_is_named(prepared):
    root, _ = prepared("dvs128-gesture", ["extract"])
    (root / "extract" / "DvsGesture" / "user24_led.aedat").unlink()
    with pytest.raises(DataError, match=r"user24_led\.aedat is missing"):
        load("dvs128-gesture", root)


def test_a_damaged_recording_is_named(prepared):
    root, _ = prepared("dvs128-gesture", ["extract"])
    recording = root / "extract" / "DvsGesture" / "user24_led.aedat"
    recording.write_bytes(recording.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"cannot convert .*user24_led\.aedat"):
        load("dvs128-gesture", root)
