"""CIFAR and ImageNet: read as torchvision reads them; what is wrong is said in a line."""

import hashlib
import multiprocessing
import os
import pickle
import re
import shutil
import struct
import tarfile
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from image_files import cifar_images, write_cifar10, write_cifar100, write_imagenet
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from qkformer.data import cifar
from qkformer.data.cifar import cifar10, cifar100
from qkformer.data.imagenet import imagenet
from qkformer.data.samples import LabelledPaths
from qkformer.data.source import DataConfig, DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*training and .* test images")
CIFARS = [(cifar10, write_cifar10, CIFAR10), (cifar100, write_cifar100, CIFAR100)]


def config(root, name="cifar10", **changes):
    return DataConfig(
        name=name, image_size=32, batch_size=4, root=None if root is None else str(root), **changes
    )


def error(source, *args, **kwargs):
    """The one line that a source is refused with."""
    with pytest.raises(DataError) as caught:
        source(config(*args, **kwargs))
    message = str(caught.value)
    assert "\n" not in message and message.startswith("data.")
    return message


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def publish(monkeypatch, files, folder):
    """Let small files be the published ones."""
    for listed in ("train_list", "test_list"):
        sums = [[name, md5(folder / name)] for name, _ in getattr(files, listed)]
        monkeypatch.setattr(files, listed, sums)
    meta = files.meta["filename"]
    monkeypatch.setattr(files, "meta", {**files.meta, "md5": md5(folder / meta)})


def archive(monkeypatch, files, folder):
    """Pack a folder as the published archive, beside it, and remove it."""
    path = folder.parent / files.filename
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, files.base_folder)
    shutil.rmtree(folder)
    monkeypatch.setattr(files, "tgz_md5", md5(path))
    return path


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/server; yields the address."""
    (tmp_path / "server").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "server")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def serve(monkeypatch, files, folder, server):
    path = archive(monkeypatch, files, folder)
    monkeypatch.setattr(files, "url", f"{server}/{path.name}")
    return path


@pytest.mark.parametrize(("source", "write", "files"), CIFARS)
def test_cifar_is_read_as_torchvision_reads_it(source, write, files, tmp_path, monkeypatch):
    publish(monkeypatch, files, write(tmp_path))
    data = source(config(tmp_path))
    assert data.num_classes == {CIFAR10: 10, CIFAR100: 100}[files]
    assert data.in_chans == 3
    assert data.class_names == tuple(f"class {i}" for i in range(data.num_classes))
    for part, train in ((data.train, True), (data.test, False)):
        expected = files(tmp_path, train=train)
        assert part.targets == expected.targets
        assert len(part) == len(expected)
        for (image, label), (theirs, their_label) in zip(part, expected, strict=True):
            assert (image.mode, label) == ("RGB", their_label)
            assert np.array_equal(image, theirs)


@pytest.mark.parametrize(("source", "write", "files"), CIFARS)
def test_cifars_class_names_are_the_published_ones_where_the_files_have_none(
    source, write, files, tmp_path
):
    names = write(tmp_path) / files.meta["filename"]
    names.unlink()
    data = source(config(tmp_path))
    assert (len(data.class_names), data.class_names[3]) in ((10, "cat"), (100, "bear"))
    for damage in (b"\x80", pickle.dumps({files.meta["key"]: ["one"]})):
        names.write_bytes(damage)
        assert str(names) in error(source, tmp_path)


def test_cifar10_reads_what_python_2_pickled(tmp_path):
    """As the published files are: strings of bytes, NumPy's functions where they once were."""
    folder = write_cifar10(tmp_path)
    data, labels = cifar_images(1, 10, seed=5)
    raw = data.transpose(0, 3, 1, 2).tobytes()
    (folder / "test_batch").write_bytes(
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x0aM\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tbU\x06labels]("
        + b"".join(b"K" + bytes([label]) for label in labels)
        + b"eu."
    )
    test = cifar10(config(tmp_path)).test
    assert np.array_equal(test.data, data)
    assert test.targets == labels


def test_another_number_of_images_is_a_warning(tmp_path):
    write_cifar10(tmp_path, 10, 2)
    with pytest.warns(UserWarning, match="100 training and 20 test images.* 50000 and 10000"):
        cifar10(config(tmp_path))


@pytest.mark.parametrize("altered", ["data_batch_3", "test_batch"])
def test_a_full_set_of_images_must_be_the_published_one(altered, tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, 10, 2)
    publish(monkeypatch, CIFAR10, folder)
    monkeypatch.setattr(cifar, "CIFAR_SIZES", (100, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cifar10(config(tmp_path))
    raw = bytearray((folder / altered).read_bytes())
    raw[len(raw) // 3] ^= 1  # a pixel
    (folder / altered).write_bytes(raw)
    message = error(cifar10, tmp_path)
    assert f"damaged: {altered} in {folder}" in message
    assert "--data.download true" in message


@pytest.mark.parametrize(("source", "write", "files"), CIFARS)
def test_absent_cifar_says_what_is_expected_where(source, write, files, tmp_path):
    assert "data.root: must be" in error(source, None)
    assert "there is no folder" in error(source, tmp_path / "nowhere")
    message = error(source, tmp_path)
    assert str(tmp_path / files.base_folder) in message
    assert files.filename in message
    assert "--data.download true" in message
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_an_incomplete_folder_names_what_is_missing(tmp_path):
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_4").unlink()
    message = error(cifar10, tmp_path)
    assert "no data_batch_4 in" in message and "damaged" not in message


def batch(**changes):
    content = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 9], **changes}
    return pickle.dumps({k: v for k, v in content.items() if v is not None}, protocol=2)


class Stranger:
    def __reduce__(self):
        return os.mkdir, ("stranger-was-here",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Ran out of input"),
        (batch()[:-900], "truncated"),
        (b"<html>404</html>", "damaged"),
        (batch(labels=None), "labels"),
        (batch(labels=[0]), "1 labels"),
        (batch(labels=[0, 10]), "0 to 9"),
        (batch(labels=[0, -1]), "0 to 9"),
        (batch(data=np.zeros((2, 3072))), "float64"),
        (batch(data=np.zeros((2, 3071), np.uint8)), "3071"),
        (batch(data=[1, 2]), "dtype"),
        (batch(extra=Stranger()), "mkdir"),
    ],
)
def test_a_damaged_file_is_named_and_runs_no_code(content, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_cifar10(tmp_path) / "data_batch_2"
    path.write_bytes(content)
    message = error(cifar10, tmp_path)
    assert f"{path} is damaged or unreadable" in message and reason in message
    assert not (tmp_path / "stranger-was-here").exists()


@pytest.mark.parametrize(("source", "write", "files"), CIFARS)
def test_an_archive_in_root_is_unpacked_without_download(
    source, write, files, tmp_path, monkeypatch
):
    folder = write(tmp_path)
    expected = source(config(tmp_path)).train.data
    path = archive(monkeypatch, files, folder)
    assert np.array_equal(source(config(tmp_path)).train.data, expected)
    assert not list(tmp_path.glob("tmp*"))
    path.unlink()  # what was unpacked stays
    source(config(tmp_path))


def test_a_damaged_archive_is_said_to_be(tmp_path, monkeypatch):
    path = archive(monkeypatch, CIFAR10, write_cifar10(tmp_path))
    path.write_bytes(path.read_bytes()[:-100])
    message = error(cifar10, tmp_path)
    assert f"{path} is damaged or incomplete" in message


def test_of_many_processes_one_fetches(tmp_path, monkeypatch, server):
    serve(monkeypatch, CIFAR10, write_cifar10(tmp_path / "server"), server)
    root, processes = tmp_path / "new" / "data", multiprocessing.get_context("fork")
    start, fetched, download = processes.Barrier(4), processes.Value("i"), cifar.download_url

    def counted(*args):
        with fetched.get_lock():
            fetched.value += 1
        download(*args)

    monkeypatch.setattr(cifar, "download_url", counted)

    def load():
        start.wait()
        assert len(cifar10(config(root, download=True)).train) == 100

    loading = [processes.Process(target=load) for _ in range(4)]
    for process in loading:
        process.start()
    for process in loading:
        process.join()
    assert [process.exitcode for process in loading] == [0] * 4
    assert fetched.value == 1


def test_download_leaves_files_alone_that_are_there(tmp_path, monkeypatch, server):
    folder = write_cifar10(tmp_path / "data")
    served = shutil.copytree(folder, tmp_path / "server" / folder.name)
    serve(monkeypatch, CIFAR10, served, server)
    (folder / "data_batch_1").write_bytes(batch())
    (folder / "test_batch").unlink()
    data = cifar10(config(tmp_path / "data", download=True))
    assert (len(data.train), len(data.test)) == (80 + 2, 20)


def test_a_download_that_fails_says_why(tmp_path, monkeypatch, server):
    path = serve(monkeypatch, CIFAR10, write_cifar10(tmp_path / "server"), server)
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    message = error(cifar10, tmp_path / "data", download=True)
    assert message.startswith("data.download") and "corrupted" in message
    path.unlink()
    message = error(cifar10, tmp_path / "data", download=True)
    assert f"{server}/{path.name}" in message and "404" in message


def test_imagenet_is_a_folder_per_class(tmp_path):
    write_imagenet(tmp_path, classes=3, train=8, val=4)
    data = imagenet(config(tmp_path, "imagenet"))
    assert (data.num_classes, data.in_chans) == (3, 3)
    assert data.class_names == ("n00000001", "n00000002", "n00000003")
    assert (len(data.train), len(data.test)) == (24, 12)
    assert data.train.class_to_idx == data.test.class_to_idx
    for part, images in (("train", data.train), ("val", data.test)):
        expected = ImageFolder(tmp_path / part)
        assert isinstance(images.samples, LabelledPaths)  # a million in little memory
        assert list(images.samples) == list(images.imgs) == expected.samples
        assert images.targets.tolist() == expected.targets
    image, label = data.train[23]
    assert (image.mode, image.size, label) == ("RGB", (48, 40), 2)
    assert np.bincount(data.test.targets).tolist() == [4, 4, 4]


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_imagenet_images_are_rgb(mode, tmp_path):
    write_imagenet(tmp_path, classes=1)
    path = sorted((tmp_path / "val/n00000001").iterdir())[0]
    Image.new(mode, (9, 7)).save(path, "PNG" if mode == "RGBA" else "JPEG")
    image, _ = imagenet(config(tmp_path, "imagenet")).test[0]
    assert (image.mode, image.size) == ("RGB", (9, 7))


def remove(path):
    shutil.rmtree(path)


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


def flatten(path):
    for image in list(path.glob("*/*")):
        image.rename(path / image.name)
    for folder in list(path.iterdir()):
        if folder.is_dir():
            folder.rmdir()


@pytest.mark.parametrize(
    ("damage", "where", "expected"),
    [
        (remove, "", "there is no folder"),
        (empty, "", "no folder train/"),
        (remove, "val", "no folder val/"),
        (empty, "train", "no class folders in"),
        (flatten, "val", "must be sorted into one folder per class"),
        (remove, "val/n00000002", "1 only in train/: n00000002"),
        (remove, "train/n00000003", "1 only in val/: n00000003"),
        (empty, "train/n00000001", "1 class folders of .*train without images: n00000001"),
        (empty, "val/n00000002", "1 class folders of .*val without images: n00000002"),
    ],
)
def test_what_is_wrong_with_imagenets_folders_is_said(damage, where, expected, tmp_path):
    root = write_imagenet(tmp_path / "imagenet", classes=3, train=4, val=4)
    damage(root / where)
    assert re.search(expected, error(imagenet, root, "imagenet"))


def test_imagenet_needs_root_and_images(tmp_path):
    assert "data.root: must be" in error(imagenet, None, "imagenet")
    for part in ("train", "val"):
        (tmp_path / part / "n00000001").mkdir(parents=True)
    assert "no images in the class folders of" in error(imagenet, tmp_path, "imagenet")


def test_imagenet_can_be_tested_on_without_its_training_images(tmp_path):
    root = write_imagenet(tmp_path, classes=3, train=1, val=4)
    remove(root / "train")
    data = imagenet(config(root, "imagenet"), training=False)
    assert (data.train, len(data.test), data.num_classes) == (None, 12, 3)
    remove(root / "val")
    with pytest.raises(DataError, match="no folder val/"):
        imagenet(config(root, "imagenet"), training=False)


def test_many_names_are_cut_short(tmp_path):
    root = write_imagenet(tmp_path, classes=6, train=1, val=1)
    for i in range(2, 7):
        remove(root / f"val/n{i:08d}")
    message = error(imagenet, root, "imagenet")
    assert "5 only in train/: n00000002, n00000003, n00000004 and 2 more" in message
