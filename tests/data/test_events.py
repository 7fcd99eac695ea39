"""Event data sets from their published files: frames, splits, and preparation that is cut short."""

import functools
import multiprocessing
import os
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import spikingjelly.datasets.utils
import torch
from data.event_files import (
    CIFAR10_CLASSES,
    aedat3,
    expected_frames,
    write_cifar10_dvs,
    write_dvs128_gesture,
)

from qkformer.data import event_preparation, event_stages
from qkformer.data.events import cifar10_dvs, dvs128_gesture, read_frames
from qkformer.data.samples import DAMAGE, Damaged, Samples
from qkformer.data.source import DataConfig, DataError

BOTH = {
    "dvs128-gesture": (dvs128_gesture, write_dvs128_gesture),
    "cifar10-dvs": (cifar10_dvs, write_cifar10_dvs),
}
both = pytest.mark.parametrize("name", BOTH)


def load(name, root, T=4, **options):
    config = DataConfig(name, image_size=128, batch_size=2, root=str(root), **options)
    return BOTH[name][0](config, T)


def write(name, root, **options):
    return BOTH[name][1](root, **options)


def relative(path, root, T=4):
    """As `write_...` names it: relative to the folder of frames."""
    return str(Path(path).relative_to(root / f"frames_number_{T}_split_by_number"))


def frames_folder(root, T=4):
    return root / f"frames_number_{T}_split_by_number"


def assert_correct(data, written, root, T=4):
    """Every recording is in one of the splits, with its label and its events."""
    found = set()
    for source in (data.train, data.test):
        assert source.targets == [label for _, label in source.samples]
        for index, (path, label) in enumerate(source.samples):
            frames, got = source[index]
            file = relative(path, root, T)
            found.add(file)
            assert got == label
            assert frames.dtype == torch.int16 and frames.shape == (T, 2, 128, 128)
            assert np.array_equal(frames.numpy(), expected_frames(written[file], T))
    assert found == set(written)


def remove_marks(root):
    """Leave a data set as SpikingJelly would have left it."""
    for mark in root.glob("*.complete"):
        mark.unlink()


@both
def test_frames_have_the_events_of_the_published_files(name, tmp_path):
    written = write(name, tmp_path)
    for T in (4, 3):
        assert_correct(load(name, tmp_path, T), written, tmp_path, T)


@both
@pytest.mark.parametrize("T", [1, 40])
def test_any_number_of_frames_even_more_than_events(name, tmp_path, T):
    options = dict(events=100) if T == 1 else dict(events=12)
    written = write(name, tmp_path, **options)
    data = load(name, tmp_path, T)
    frames, _ = data.train[0]
    file = relative(data.train.samples[0][0], tmp_path, T)
    assert np.array_equal(frames.numpy(), expected_frames(written[file], T))


@both
def test_frames_are_those_of_spikingjelly(name, tmp_path, monkeypatch):
    """... which, started without its checks of MD5 and network, reads our folders and theirs."""
    from spikingjelly.datasets.base import NeuromorphicDatasetFolder
    from spikingjelly.datasets.cifar10_dvs import CIFAR10DVS
    from spikingjelly.datasets.dvs128_gesture import DVS128Gesture

    monkeypatch.setattr(
        NeuromorphicDatasetFolder, "_check_downloaded_files", classmethod(lambda *_: None)
    )
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for root in (ours, theirs):
        write(name, root)
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
        mine = {relative(path, ours): (path, label) for path, label in samples}
        assert len(reference) == len(mine)
        for (path, label), (frames, _) in zip(reference.samples, reference, strict=True):
            my_path, my_label = mine[relative(path, theirs)]
            assert my_label == label
            assert np.array_equal(read_frames(my_path, 4).numpy(), frames)


def test_dvs128_gesture_has_its_official_split(tmp_path, monkeypatch):
    train, test = ("user01_led", "user02_led", "user03_lab"), ("user24_lab", "user29_natural")
    write_dvs128_gesture(tmp_path, train=train, test=test)
    load("dvs128-gesture", tmp_path)
    monkeypatch.setattr(np, "load", None)  # neither labels nor splits need the samples
    data = load("dvs128-gesture", tmp_path)
    assert (data.num_classes, data.size, data.in_chans) == (11, 128, 2)
    # torchvision numbers folders in alphabetical order, and so do published weights
    folders = sorted(map(str, range(11)))
    for source, users in ((data.train, train), (data.test, test)):
        assert len(source) == 12 * len(users)
        expected = [
            (f"{folder}/{user}_{k}.npz", label)
            for label, folder in enumerate(folders)
            for user in users
            for k in range(2 if folder == "7" else 1)
        ]
        got = [("/".join(path.split("/")[-2:]), label) for path, label in source.samples]
        assert got == expected


NUMBERS = (0, 1, 2, 10, 37, 99, 100, 101, 250, 999)
ALPHABETICAL = [0, 1, 10, 100, 101, 2, 250, 37, 99, 999]


@pytest.mark.parametrize(
    "split, test_numbers",
    [
        (None, [999]),
        ("released", [999]),
        ("tebn", [0, 1, 10, 2, 37, 99]),
    ],
)
def test_cifar10_dvs_splits(tmp_path, monkeypatch, split, test_numbers):
    write_cifar10_dvs(tmp_path, NUMBERS, events=20)
    load("cifar10-dvs", tmp_path)
    monkeypatch.setattr(np, "load", None)
    data = load("cifar10-dvs", tmp_path, split=split)
    assert (data.num_classes, data.size, data.in_chans) == (10, 128, 2)
    train_numbers = [number for number in ALPHABETICAL if number not in test_numbers]
    for source, numbers in ((data.train, train_numbers), (data.test, test_numbers)):
        assert source.samples == [
            (str(frames_folder(tmp_path) / name / f"cifar10_{name}_{number}.npz"), label)
            for label, name in enumerate(CIFAR10_CLASSES)
            for number in numbers
        ]
        assert source.targets == [label for label in range(10) for _ in numbers]


def test_tebn_split_is_that_of_spikingjelly_and_its_links_do_no_harm(tmp_path):
    from spikingjelly.datasets.cifar10_dvs import _move_data

    write_cifar10_dvs(tmp_path, NUMBERS, events=20)
    before = load("cifar10-dvs", tmp_path, split="tebn")
    _move_data(frames_folder(tmp_path))
    after = load("cifar10-dvs", tmp_path, split="tebn")
    assert after.train.samples == before.train.samples
    for split, source in (("train", after.train), ("test", after.test)):
        links = frames_folder(tmp_path).glob(f"{split}/*/*.npz")
        # it makes links for all of 0..999, whether or not there are such samples
        theirs = {os.readlink(link) for link in links if link.exists()}
        assert theirs == {path for path, _ in source.samples}


@pytest.mark.parametrize(
    "split, per_class", [("tebn", 3), ("tebn", (100, 101)), ("released", 1), (None, 1)]
)
def test_a_split_that_leaves_nothing_is_refused(tmp_path, split, per_class):
    write_cifar10_dvs(tmp_path, per_class, events=20)
    with pytest.raises(DataError, match=r"data\.split: \w+ leaves nothing to (train on|test)"):
        load("cifar10-dvs", tmp_path, split=split)


def test_testing_needs_no_training_samples(tmp_path):
    write_cifar10_dvs(tmp_path, 2, events=20)
    config = DataConfig("cifar10-dvs", 128, 2, root=str(tmp_path), split="tebn")
    data = cifar10_dvs(config, T=4, training=False)
    assert len(data.test) == 20 and len(data.train) == 0


class Killer:
    """Kills this process just before its n-th step: a file, or a folder, getting its name."""

    def __init__(self, steps):
        self.left = steps
        for place, name in (
            (event_preparation, "publish"),
            (event_stages, "publish"),
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
    torch.set_num_threads(1)
    Killer(steps)
    load(name, root)


def in_another_process(function, *args):
    """Start it; forked, since importing PyTorch again would take most of the time."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


@both
@pytest.mark.parametrize("steps", [20, 40])
def test_killed_again_and_again_it_goes_on_to_the_end(name, tmp_path, steps):
    written = write(name, tmp_path, events=30)
    for attempts in range(1, 60):  # noqa: B007
        process = in_another_process(prepare_until_killed, name, tmp_path, steps)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0 and attempts > 3
    assert_correct(load(name, tmp_path), written, tmp_path)
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".complete")}
    stages = {"download", "extract", "events_np", frames_folder(tmp_path).name}
    assert left == stages | {".preparation.lock"}


@both
@pytest.mark.parametrize("steps", [0, 5, 15, 45, 60, 75, 90])
def test_killed_at_any_moment_the_next_start_completes_it(name, tmp_path, steps):
    written = write(name, tmp_path, events=30)
    process = in_another_process(prepare_until_killed, name, tmp_path, steps)
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0)
    assert_correct(load(name, tmp_path), written, tmp_path)


@both
def test_what_was_done_is_not_done_again(name, tmp_path, monkeypatch):
    write(name, tmp_path, events=30)
    made = []
    monkeypatch.setattr(
        event_preparation.Preparation,
        "_integrate_one",
        stop_after(10, made, event_preparation.Preparation._integrate_one),
    )
    with pytest.raises(KeyboardInterrupt):
        load(name, tmp_path)
    first = list(made)
    load(name, tmp_path)
    total = len(list(frames_folder(tmp_path).rglob("*.npz")))
    assert len(first) >= 10
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
    torch.set_num_threads(1)
    original = event_preparation.publish

    def noting(temporary, path):
        with open(log, "a") as file:
            file.write(f"{path}\n")
        original(temporary, path)

    event_preparation.publish = event_stages.publish = noting
    start.wait()
    load(name, root)


@both
def test_processes_that_start_at_once_prepare_once(name, tmp_path):
    root, log = tmp_path / "root", tmp_path / "log"
    written = write(name, root, events=30)
    start = multiprocessing.get_context("fork").Barrier(3)
    processes = [in_another_process(prepare_and_note, name, root, log, start) for _ in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    files = log.read_text().splitlines()
    assert len(files) == len(set(files)) > 2 * len(written)
    assert_correct(load(name, root), written, root)


def test_a_process_that_waits_says_so(tmp_path, monkeypatch, capsys):
    write_cifar10_dvs(tmp_path, events=20)
    monkeypatch.setattr(event_stages, "SECONDS_BEFORE_FIRST_LINE", 0.1)
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()

    def hold():
        with event_stages.only_one(tmp_path):
            held.set()
            release.wait(5)

    holder = in_another_process(hold)
    held.wait()
    monkeypatch.setattr(event_stages.time, "sleep", lambda _: tick())
    ticks = iter(range(10**9))

    def tick():
        os.sched_yield()
        if next(ticks) > 3 and "waiting for another process" in said():
            os.kill(holder.pid, signal.SIGKILL)  # which lets go of the lock

    seen = []

    def said():
        seen.append(capsys.readouterr().out)
        return "".join(seen)

    load("cifar10-dvs", tmp_path)
    holder.join()
    assert f"waiting for another process that prepares {tmp_path}" in said()


@both
@pytest.mark.parametrize("kept", ["extract", "events_np", "frames"])
def test_folders_made_by_others_are_accepted(name, tmp_path, kept):
    written = write(name, tmp_path)
    load(name, tmp_path)
    remove_marks(tmp_path)
    for folder in ("download", "extract", "events_np", frames_folder(tmp_path).name):
        if folder.split("_number")[0] != kept:
            shutil.rmtree(tmp_path / folder)
    assert_correct(load(name, tmp_path), written, tmp_path)
    assert frames_folder(tmp_path).with_name(f"{frames_folder(tmp_path).name}.complete").exists()


@both
@pytest.mark.parametrize("stage", ["extract", "events_np", "frames_number_4_split_by_number"])
@pytest.mark.parametrize("marker", [False, True])
def test_folders_that_others_left_unfinished_are_completed(name, tmp_path, stage, marker):
    """As SpikingJelly 1 (without marker) and 2 leave them when killed."""
    written = write(name, tmp_path)
    load(name, tmp_path)
    remove_marks(tmp_path)
    stages = ["extract", "events_np", "frames_number_4_split_by_number"]
    for later in stages[stages.index(stage) + 1 :]:
        shutil.rmtree(tmp_path / later)
    files = sorted(path for path in (tmp_path / stage).rglob("*.*") if path.is_file())
    files[-1].unlink()
    files[0].write_bytes(files[0].read_bytes()[:-9])
    building = tmp_path / ("frames_number_4_split_by_number" if "frames" in stage else "events_np")
    building = building.with_name(f"{building.name}.building")
    if marker:
        building.touch()
    assert_correct(load(name, tmp_path), written, tmp_path)
    assert not building.exists()


@both
def test_an_unfinished_folder_without_what_it_was_made_of_is_not_taken(name, tmp_path):
    write(name, tmp_path)
    load(name, tmp_path)
    remove_marks(tmp_path)
    for folder in ("download", "extract", "events_np"):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / f"{frames_folder(tmp_path).name}.building").touch()
    with pytest.raises(DataError, match="has no complete"):
        load(name, tmp_path)


@both
@pytest.mark.parametrize("made_by", ["us", "others"])
def test_finished_frames_can_be_read_only(name, tmp_path, monkeypatch, made_by):
    written = write(name, tmp_path)
    load(name, tmp_path)
    if made_by == "others":
        remove_marks(tmp_path)

    def refuse(_):  # file permissions do not stop root, as which tests may run
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(event_preparation, "only_one", refuse)
    assert_correct(load(name, tmp_path), written, tmp_path)
    with pytest.raises(DataError, match=r"cannot prepare .*Permission denied"):
        load(name, tmp_path, 5)
    if made_by == "others":
        next(frames_folder(tmp_path).rglob("*.npz")).unlink()
        with pytest.raises(DataError, match="cannot prepare"):
            load(name, tmp_path)


def test_files_that_vanish_later_are_made_again(tmp_path):
    written = write_cifar10_dvs(tmp_path)
    load("cifar10-dvs", tmp_path)
    for folder in ("extract", "events_np", frames_folder(tmp_path).name):
        shutil.rmtree(tmp_path / folder / "bird")
    assert_correct(load("cifar10-dvs", tmp_path), written, tmp_path)


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


def test_only_the_missing_archives_are_named(tmp_path):
    write_cifar10_dvs(tmp_path)
    (tmp_path / "download" / "bird.zip").unlink()
    with pytest.raises(DataError, match=r"missing: bird\.zip \(https://[^;]*$"):
        load("cifar10-dvs", tmp_path)


@both
def test_a_root_and_a_number_of_frames_are_needed(name, tmp_path):
    with pytest.raises(DataError, match=r"^model\.T: "):
        load(name, tmp_path, None)
    config = DataConfig(name, image_size=128, batch_size=2)
    with pytest.raises(DataError, match=r"^data\.root: "):
        BOTH[name][0](config, 4)


@both
def test_a_damaged_archive_is_named_and_kept(name, tmp_path):
    write(name, tmp_path)
    archive = sorted((tmp_path / "download").iterdir())[0]
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{archive.name} is damaged") as error:
        load(name, tmp_path)
    assert "https://" in str(error.value)
    archive.write_bytes(whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :])
    with pytest.raises(DataError, match=f"{archive.name} is damaged"):
        load(name, tmp_path)
    archive.write_bytes(whole)
    load(name, tmp_path)


def test_classes_without_files_are_named(tmp_path):
    write_cifar10_dvs(tmp_path)
    with zipfile.ZipFile(tmp_path / "download" / "cat.zip", "w") as archive:
        archive.writestr("cats/cifar10_cat_0.aedat", b"")
    with pytest.raises(DataError, match=r"should have 10 folders .* none in cat$"):
        load("cifar10-dvs", tmp_path)


def test_a_trial_without_its_recording_is_named(tmp_path):
    write_dvs128_gesture(tmp_path)
    load("dvs128-gesture", tmp_path)
    remove_marks(tmp_path)
    for folder in ("download", "events_np", frames_folder(tmp_path).name):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / "extract" / "DvsGesture" / "user02_lab.aedat").unlink()
    with pytest.raises(DataError, match=r"user02_lab\.aedat is missing"):
        load("dvs128-gesture", tmp_path)


def test_a_damaged_recording_is_named(tmp_path):
    write_dvs128_gesture(tmp_path)
    load("dvs128-gesture", tmp_path)
    for folder in ("download", "events_np", frames_folder(tmp_path).name):
        shutil.rmtree(tmp_path / folder)
    recording = tmp_path / "extract" / "DvsGesture" / "user02_lab.aedat"
    recording.write_bytes(recording.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"cannot convert .*user02_lab\.aedat"):
        load("dvs128-gesture", tmp_path)


@pytest.fixture(scope="module")
def one_sample(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_cifar10_dvs(root, 2, events=100)
    data = load("cifar10-dvs", root)
    path = Path(data.train.samples[0][0])
    whole = path.read_bytes()
    yield data.train, path
    path.write_bytes(whole)


def test_damaged_frames_are_reported_with_their_file(one_sample):
    source, path = one_sample
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    variants = [b"", whole[:100], whole[:-1]]
    for _ in range(150):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            changed[place] ^= int(rng.integers(1, 256))
        variants.append(bytes(changed))
    for damaged in variants:
        path.write_bytes(damaged)
        result = Samples(source)[0, 0]
        if isinstance(result, Damaged):
            assert result.sample == str(path) and result.reason and "\n" not in str(result)
    path.write_bytes(whole[:-1])
    assert isinstance(Samples(source)[0, 0], Damaged)
    path.unlink()
    assert isinstance(Samples(source)[0, 0], Damaged)
    path.write_bytes(whole)
    assert not isinstance(Samples(source)[0, 0], Damaged)


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


def test_a_pixel_with_too_many_events_is_one_damaged_sample(tmp_path):
    write_cifar10_dvs(tmp_path, 2, events=50)
    load("cifar10-dvs", tmp_path)
    shutil.rmtree(frames_folder(tmp_path))
    events = tmp_path / "events_np" / "cat" / "cifar10_cat_0.npz"
    ones = np.ones(40_000, np.int64)
    np.savez(events, t=np.arange(40_000), x=ones, y=ones, p=ones)
    data = load("cifar10-dvs", tmp_path, 1)
    results = [Samples(data.train)[index, 0] for index in range(len(data.train))]
    damaged = [result for result in results if isinstance(result, Damaged)]
    assert [Path(result.sample).name for result in damaged] == [events.name]
    assert "40000" in damaged[0].reason


def test_written_aedat3_has_several_packets():
    """So that the parser's loop over packets is tested, too."""
    events = {key: np.arange(200) for key in "txyp"}
    assert len(aedat3(events)) > 200 * 8 + 3 * 28
