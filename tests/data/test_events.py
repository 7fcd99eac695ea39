"""Event data sets: frames and labels of the published files, in the published splits."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data.event_files import CIFAR10_CLASSES, aedat3, expected_frames
from data.event_roots import BOTH, assert_correct, empty_frames, frames_folder, load, write

from qkformer.data.events import read_frames
from qkformer.data.samples import DAMAGE, Damaged, Samples
from qkformer.data.source import DataConfig, DataError

both = pytest.mark.parametrize("name", BOTH)


@both
def test_frames_have_the_events_of_the_published_files(name, prepared):
    root, written = prepared(name, ["events_np"])
    assert_correct(load(name, root, 3), written, root, 3)


@pytest.mark.parametrize(("T", "events"), [(1, 100), (12, 8)])
def test_any_number_of_frames_even_more_than_events(tmp_path, no_fsync, T, events):
    written = write("cifar10-dvs", tmp_path, events=events)
    data = load("cifar10-dvs", tmp_path, T)
    assert min(len(sample["t"]) for sample in written.values()) < 12 or T == 1
    assert_correct(data, written, tmp_path, T)


@both
def test_frames_are_those_of_spikingjelly(name, finished, tmp_path, monkeypatch):
    """... which, started without its checks of MD5 and network, reads our folders and theirs."""
    from spikingjelly.datasets.base import NeuromorphicDatasetFolder
    from spikingjelly.datasets.cifar10_dvs import CIFAR10DVS
    from spikingjelly.datasets.dvs128_gesture import DVS128Gesture

    monkeypatch.setattr(
        NeuromorphicDatasetFolder, "_check_downloaded_files", classmethod(lambda *_: None)
    )
    ours, theirs = finished[name][0], tmp_path
    write(name, theirs)
    data = load(name, ours)
    options = dict(data_type="frame", frames_number=4, split_by="number")
    if name == "cifar10-dvs":
        parts = [(CIFAR10DVS(theirs, **options), [*data.train.samples, *data.test.samples])]
        assert len(CIFAR10DVS(ours, **options)) == len(parts[0][0])
    else:
        parts = [
            (DVS128Gesture(theirs, train=True, **options), data.train.samples),
            (DVS128Gesture(theirs, train=False, **options), data.test.samples),
        ]
    for reference, samples in parts:
        mine = {Path(path).relative_to(ours): (path, label) for path, label in samples}
        assert len(reference) == len(mine)
        for (path, label), (frames, _) in zip(reference.samples, reference, strict=True):
            my_path, my_label = mine[Path(path).relative_to(theirs)]
            assert my_label == label
            assert np.array_equal(read_frames(my_path, 4).numpy(), frames)


def test_written_aedat3_has_several_packets():
    """So that the parser's loop over packets is tested, too."""
    events = {key: np.arange(200) for key in "txyp"}
    assert len(aedat3(events)) > 200 * 8 + 3 * 28


# ---- splits: of frames that are there by name only, as neither labels nor splits need more


def test_dvs128_gesture_has_its_official_split(tmp_path):
    users = {"train": ("user01_led", "user02_led"), "test": ("user24_lab", "user29_natural")}
    numbers = {label: range(2 if label == 7 else 1) for label in range(11)}
    names = {
        f"{part}/{label}": [f"{user}_{k}" for user in users[part] for k in numbers[label]]
        for part in users
        for label in range(11)
    }
    data = load("dvs128-gesture", empty_frames(tmp_path, names))
    assert (data.num_classes, data.size, data.in_chans) == (11, 128, 2)
    # torchvision numbers folders in alphabetical order, and so do published weights
    folders = sorted(map(str, range(11)))
    assert data.class_names[folders.index("0")] == "hand clapping"
    assert data.class_names[folders.index("10")] == "other gestures" == data.class_names[2]
    for source, part in ((data.train, "train"), (data.test, "test")):
        assert list(source.samples) == [
            (str(frames_folder(tmp_path) / part / folder / f"{user}_{k}.npz"), label)
            for label, folder in enumerate(folders)
            for user in users[part]
            for k in numbers[int(folder)]
        ]


NUMBERS = (0, 1, 2, 10, 37, 99, 100, 101, 250, 999)
ALPHABETICAL = [0, 1, 10, 100, 101, 2, 250, 37, 99, 999]


def cifar10_dvs_frames(root, numbers):
    names = {name: [f"cifar10_{name}_{number}" for number in numbers] for name in CIFAR10_CLASSES}
    return empty_frames(root, names)


@pytest.mark.parametrize(
    "split, test_numbers",
    [(None, [999]), ("released", [999]), ("tebn", [0, 1, 10, 2, 37, 99])],
)
def test_cifar10_dvs_splits(tmp_path, split, test_numbers):
    data = load("cifar10-dvs", cifar10_dvs_frames(tmp_path, NUMBERS), split=split)
    assert (data.num_classes, data.size, data.in_chans) == (10, 128, 2)
    assert data.class_names == CIFAR10_CLASSES
    train_numbers = [number for number in ALPHABETICAL if number not in test_numbers]
    for source, numbers in ((data.train, train_numbers), (data.test, test_numbers)):
        assert list(source.samples) == [
            (str(frames_folder(tmp_path) / name / f"cifar10_{name}_{number}.npz"), label)
            for label, name in enumerate(CIFAR10_CLASSES)
            for number in numbers
        ]
        assert source.targets.tolist() == [label for label in range(10) for _ in numbers]


def test_tebn_split_is_that_of_spikingjelly_and_its_links_do_no_harm(tmp_path, monkeypatch):
    from spikingjelly.datasets import cifar10_dvs

    # which makes links for all of 0..999, whether or not there are such samples
    monkeypatch.setattr(cifar10_dvs, "CIFAR10DVS_CLASS_NAMES", CIFAR10_CLASSES[:2])
    root = cifar10_dvs_frames(tmp_path, NUMBERS)
    before = load("cifar10-dvs", root, split="tebn")
    cifar10_dvs._move_data(frames_folder(root))
    after = load("cifar10-dvs", root, split="tebn")
    assert list(after.train.samples) == list(before.train.samples)
    for split, source in (("train", after.train), ("test", after.test)):
        links = frames_folder(root).glob(f"{split}/*/*.npz")
        theirs = {os.readlink(link) for link in links if link.exists()}
        assert theirs == {path for path, label in source.samples if label < 2}


@pytest.mark.parametrize(
    "split, numbers", [("tebn", range(3)), ("tebn", (100, 101)), ("released", [0]), (None, [0])]
)
def test_a_split_that_leaves_nothing_is_refused(tmp_path, split, numbers):
    root = cifar10_dvs_frames(tmp_path, numbers)
    with pytest.raises(DataError, match=r"data\.split: \w+ leaves nothing to (train on|test)"):
        load("cifar10-dvs", root, split=split)


def test_testing_needs_no_training_samples(tmp_path):
    root = cifar10_dvs_frames(tmp_path, range(2))
    data = load("cifar10-dvs", root, split="tebn", training=False)
    assert len(data.test) == 20 and len(data.train) == 0


@both
def test_a_root_and_a_number_of_frames_are_needed(name, tmp_path):
    with pytest.raises(DataError, match=r"^model\.T: "):
        load(name, tmp_path, None)
    config = DataConfig(name, image_size=128, batch_size=2)
    with pytest.raises(DataError, match=r"^data\.root: "):
        BOTH[name][0](config, 4)


# ---- files of frames


def test_damaged_frames_are_reported_with_their_file(prepared):
    root, written = prepared("cifar10-dvs", ["frames_number_4_split_by_number"])
    samples = Samples(load("cifar10-dvs", root).train)
    path, _ = samples.source.samples[0]
    whole = Path(path).read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            changed[place] ^= int(rng.integers(1, 256))
        Path(path).write_bytes(changed)
        result = samples[0, 0]
        outcomes.add(type(result))
        if isinstance(result, Damaged):
            assert result.sample == path and result.reason and "\n" not in str(result)
    assert Damaged in outcomes
    for cut in (b"", whole[:100], whole[:-1]):
        Path(path).write_bytes(cut)
        assert isinstance(samples[0, 0], Damaged)
    os.remove(path)
    assert isinstance(samples[0, 0], Damaged)
    Path(path).write_bytes(whole)
    file = str(Path(path).relative_to(frames_folder(root)))
    assert np.array_equal(samples[0, 0][0], expected_frames(written[file], 4))


def with_pixel(value, dtype=np.float64, T=4):
    frames = np.zeros((T, 2, 128, 128), dtype)
    frames[0, 1, 2, 3] = value
    return frames


@pytest.mark.parametrize(
    "frames, reason",
    [
        (with_pixel(32768), "counts must be 0 to 32767, found 0.0 to 32768"),
        (with_pixel(70000, np.int64), "70000"),
        (with_pixel(-1, np.int64), "found -1"),
        (with_pixel(np.nan), "nan"),
        (with_pixel(1, T=3), "shape"),
    ],
)
def test_frames_that_int16_cannot_hold_or_of_another_shape_are_refused(tmp_path, frames, reason):
    np.savez_compressed(tmp_path / "frames.npz", frames=frames)
    with pytest.raises(ValueError, match=reason) as error:
        read_frames(tmp_path / "frames.npz", 4)
    assert isinstance(error.value, DAMAGE)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.int16, np.uint8])
def test_frames_of_any_type_are_read(tmp_path, dtype):
    np.savez(tmp_path / "frames.npz", frames=with_pixel(200, dtype))
    frames = read_frames(tmp_path / "frames.npz", 4)
    assert frames.dtype == torch.int16 and frames[0, 1, 2, 3] == 200 and frames.sum() == 200


def test_a_pixel_with_too_many_events_is_one_damaged_sample(prepared):
    root, _ = prepared("cifar10-dvs", ["events_np"])
    events = root / "events_np" / "cat" / "cifar10_cat_0.npz"
    ones = np.ones(40_000, np.int64)
    np.savez(events, t=np.arange(40_000), x=ones, y=ones, p=ones)
    samples = Samples(load("cifar10-dvs", root, 1).train)
    damaged = [
        result
        for result in map(samples.__getitem__, ((i, 0) for i in range(10)))
        if isinstance(result, Damaged)
    ]
    assert [Path(result.sample).name for result in damaged] == [events.name]
    assert "40000" in damaged[0].reason
