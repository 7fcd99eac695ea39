"""Checkpoint files: written whole or not at all, read without running what they hold."""

import argparse
import os
import pathlib
import pickle
import resource

import pytest
import torch

from qkformer.checkpoint import io
from qkformer.checkpoint.io import CheckpointError, read_checkpoint, save_checkpoint
from qkformer.files import FileError


class Payload:
    """Pickles as a call of os.system that leaves a marker file when it is run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Unknown:
    """A class that is harmless but not a checkpoint's business."""


def a_checkpoint():
    return {
        "model": {"weight": torch.arange(200.0), "steps": torch.tensor(3)},
        "args": argparse.Namespace(model="qkformer", nested=argparse.Namespace(depths=[1, 2])),
        "epoch": 7,
    }


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "old format"])
def test_tensors_plain_values_and_namespaces_are_read(tmp_path, zipped):
    path = tmp_path / "checkpoint.pth"
    torch.save(a_checkpoint(), path, _use_new_zipfile_serialization=zipped)
    content = read_checkpoint(path)
    assert torch.equal(content["model"]["weight"], torch.arange(200.0))
    assert content["args"].nested.depths == [1, 2]
    assert content["epoch"] == 7


def test_safetensors_are_read_as_a_flat_state_dict(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    assert torch.equal(read_checkpoint(path)["weight"], torch.ones(3))


def save_zip(obj, path):
    torch.save(obj, path)


def save_old(obj, path):
    torch.save(obj, path, _use_new_zipfile_serialization=False)


def save_newer_pickle(obj, path):
    torch.save(obj, path, pickle_protocol=4)


def save_plain_pickle(obj, path):
    with open(path, "wb") as file:
        pickle.dump(obj, file)


@pytest.mark.parametrize("save", [save_zip, save_old, save_newer_pickle, save_plain_pickle])
@pytest.mark.parametrize("inside_namespace", [False, True])
def test_code_in_a_file_is_named_and_not_run(tmp_path, save, inside_namespace):
    marker = tmp_path / "marker"
    payload = Payload(marker)
    path = tmp_path / "malicious.pth"
    save({"model": {}, "x": argparse.Namespace(x=payload) if inside_namespace else payload}, path)
    message = refusal(path)
    assert f"{os.system.__module__}.system" in message
    assert "refused and not executed" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Unknown(), f"{__name__}.Unknown"),
        (pathlib.PurePosixPath("/"), f"{pathlib.PurePosixPath.__module__}.PurePosixPath"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (print, "builtins.print"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_other_class_is_refused_by_name(tmp_path, value, name):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {}, "extra": value}, path)
    assert name in refusal(path)


@pytest.mark.parametrize("save", [save_zip, save_old])
@pytest.mark.parametrize("kept", [0.02, 0.2, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, save, kept):
    path = tmp_path / "checkpoint.pth"
    save(a_checkpoint(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert "truncated" in refusal(path)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("data", [b"no checkpoint at all\n" * 20, bytes(range(256)) * 8, b"\x80"])
def test_files_of_another_kind_are_refused(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert "not a " in refusal(path)


def test_missing_folder_and_empty_file_are_told_apart(tmp_path):
    empty = tmp_path / "empty.pth"
    empty.touch()
    assert "empty" in refusal(empty)
    assert "folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "nowhere.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    assert "regular file" in refusal(tmp_path / "pipe.pth")


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), None, "text"])
def test_content_that_is_no_dict_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    assert "expected a dict" in refusal(path)


# ------------------------------------------------------------------------------------ writing


def test_what_is_saved_is_read_back(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(a_checkpoint(), path)
    save_checkpoint({**a_checkpoint(), "epoch": 8}, path)
    content = read_checkpoint(path)
    assert content["epoch"] == 8
    assert torch.equal(content["model"]["weight"], a_checkpoint()["model"]["weight"])
    assert os.listdir(tmp_path) == ["last.pth"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, failure, moment
):
    path = tmp_path / "last.pth"
    save_checkpoint({"epoch": 1}, path)

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises((KeyboardInterrupt, FileError)):
        save_checkpoint({"epoch": 2}, path)
    assert read_checkpoint(path)["epoch"] == 1
    assert os.listdir(tmp_path) == ["last.pth"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    """While files may not grow past 64 kB, which fails as a full disk does."""
    path = tmp_path / "last.pth"
    save_checkpoint({"epoch": 1}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(FileError) as caught:
            save_checkpoint({"model": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == f"cannot write {path}: File too large"
    assert read_checkpoint(path)["epoch"] == 1
    assert os.listdir(tmp_path) == ["last.pth"]


def test_unwritable_targets_are_named(tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "missing" / "last.pth", tmp_path / "file" / "last.pth", tmp_path):
        with pytest.raises(FileError, match="cannot write") as caught:
            save_checkpoint({}, target)
        assert str(target) in str(caught.value)


def test_saved_files_obey_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        save_checkpoint({}, tmp_path / "last.pth")
    finally:
        os.umask(before)
    assert (tmp_path / "last.pth").stat().st_mode & 0o777 == 0o644


def test_md5(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert io.file_md5(path) == "900150983cd24fb0d6963f7d28e17f72"
    with pytest.raises(CheckpointError, match="cannot read"):
        io.file_md5(tmp_path / "nowhere")
