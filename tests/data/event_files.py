"""Tiny event data sets, in the files and formats in which the real ones are published."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

SIZE = 128
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
PACKET = 64  # AEDAT 3.1: most events in a packet
Events = dict[str, np.ndarray]  # t (microseconds), x, y, p


def write_dvs128_gesture(
    root: str | Path,
    *,
    train: Sequence[str] = ("user01_led",),
    test: Sequence[str] = ("user24_led",),
    events: int = 300,
    seed: int = 0,
) -> dict[str, Events]:
    """Write root/download/DvsGesture.tar.gz.

    Args:
        root: Folder of the data set.
        train: Recordings to train on; each has 12 samples: one of every gesture, two of the eighth.
        test: Recordings to test on.
        events: About how many events a sample has.
        seed: Of the random events. Those of a gesture lie in a corner of its own, so that a network
            can learn them.

    Returns:
        Event file as SpikingJelly names it ("train/0/user01_led_0.npz") -> its events.
    """
    rng = np.random.default_rng(seed)
    written = {}
    files = {
        "trials_to_train.txt": "".join(f"{name}.aedat\n" for name in train).encode(),
        "trials_to_test.txt": "".join(f"{name}.aedat\n" for name in test).encode(),
        "README.txt": b"not needed\n",
    }
    for split, recordings in (("train", train), ("test", test)):
        for name in recordings:
            stream, labels, clock = [], "class,startTime_usec,endTime_usec\n", 80_000_000
            for gesture in (*range(1, 9), *range(8, 12)):
                sample = random_events(rng, gesture - 1, events, clock)
                end = int(sample["t"][-1]) + 1
                labels += f"{gesture},{clock},{end}\n"
                number = sum(f"{split}/{gesture - 1}/{name}_{k}.npz" in written for k in (0, 1))
                written[f"{split}/{gesture - 1}/{name}_{number}.npz"] = sample
                # between the samples there are events that belong to none
                between = random_events(rng, 0, 20, end)
                stream += [sample, between]
                clock = int(between["t"][-1]) + 1
            files[f"{name}.aedat"] = aedat3(concatenated(stream))
            files[f"{name}_labels.csv"] = labels.encode()
    download = Path(root) / "download"
    download.mkdir(parents=True, exist_ok=True)
    with tarfile.open(download / "DvsGesture.tar.gz", "w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo("DvsGesture")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(f"DvsGesture/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return written


def write_cifar10_dvs(
    root: str | Path, per_class: int | Iterable[int] = 2, *, events: int = 300, seed: int = 0
) -> dict[str, Events]:
    """Write root/download/{airplane,automobile,..}.zip.

    Args:
        root: Folder of the data set.
        per_class: Samples of every class, or their numbers.
        events: About how many events a sample has.
        seed: Of the random events. Those of a class lie in a corner of its own, so that a network
            can learn them.

    Returns:
        Event file as SpikingJelly names it ("airplane/cifar10_airplane_0.npz") -> its events.
    """
    rng = np.random.default_rng(seed)
    numbers = list(range(per_class) if isinstance(per_class, int) else per_class)
    download = Path(root) / "download"
    download.mkdir(parents=True, exist_ok=True)
    written = {}
    for label, name in enumerate(CIFAR10_CLASSES):
        with zipfile.ZipFile(download / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/", "")
            for number in numbers:
                sample = random_events(rng, label, events, 0)
                archive.writestr(f"{name}/cifar10_{name}_{number}.aedat", aedat2(sample))
                written[f"{name}/cifar10_{name}_{number}.npz"] = sample
    return written


def random_events(rng: np.random.Generator, label: int, count: int, start: int) -> Events:
    """About `count` events after `start` (microseconds), in one of 4 x 4 blocks of pixels."""
    count = int(rng.integers(count * 9 // 10, count * 11 // 10 + 1))
    row, column = divmod(label, 4)
    return {
        "t": start + np.cumsum(rng.integers(1, 50, count)),
        "x": 32 * column + rng.integers(0, 32, count),
        "y": 32 * row + rng.integers(0, 32, count),
        "p": rng.integers(0, 2, count),
    }


def concatenated(parts: Sequence[Events]) -> Events:
    return {key: np.concatenate([part[key] for part in parts]) for key in "txyp"}


def aedat3(events: Events) -> bytes:
    """AEDAT 3.1: a header, then packets of polarity events, and one packet of another type."""
    header = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
    address = events["x"] << 17 | events["y"] << 2 | events["p"] << 1 | 1
    data = np.stack([address, events["t"]], axis=1).astype("<u4")
    special = struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + struct.pack("<II", 3, 0)
    packets = [special]
    for start in range(0, len(data), PACKET):
        part = data[start : start + PACKET]
        # type, source, bytes per event, offset of the time, its overflows, capacity, number, valid
        packets.append(
            struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, len(part), len(part), len(part))
            + part.tobytes()
        )
    return header + b"".join(packets)


def aedat2(events: Events) -> bytes:
    """AEDAT 2.0 of a DVS128 that stands on its side, as CIFAR10-DVS was recorded."""
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    column, row = SIZE - 1 - events["y"], SIZE - 1 - events["x"]
    address = row << 8 | column << 1 | (1 - events["p"])
    return header + np.stack([address, events["t"]], axis=1).astype(">u4").tobytes()


def expected_frames(events: Events, T: int) -> np.ndarray:
    """Counts [T, 2, 128, 128]: T times the same number of events, the rest in the last frame."""
    frames = np.zeros((T, 2, SIZE, SIZE), dtype=np.int64)
    each = len(events["t"]) // T
    t = np.minimum(np.arange(len(events["t"])) // max(each, 1), T - 1) if each else T - 1
    np.add.at(frames, (t, events["p"], events["y"], events["x"]), 1)
    return frames
