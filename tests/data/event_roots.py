"""Roots of small event data sets: written, prepared, and compared with what was written."""

from pathlib import Path

import numpy as np
import torch
from data.event_files import Events, expected_frames, write_cifar10_dvs, write_dvs128_gesture

from qkformer.data.events import cifar10_dvs, dvs128_gesture
from qkformer.data.source import DataConfig, EventData

BOTH = {
    "dvs128-gesture": (dvs128_gesture, write_dvs128_gesture),
    "cifar10-dvs": (cifar10_dvs, write_cifar10_dvs),
}

STAGES = ("download", "extract", "events_np", "frames_number_4_split_by_number")


def write(name: str, root: Path, *arguments, events: int = 60, **options) -> dict[str, Events]:
    return BOTH[name][1](root, *arguments, events=events, **options)


def load(name: str, root: Path, T: int | None = 4, *, training: bool = True, **options):
    config = DataConfig(name, image_size=128, batch_size=2, root=str(root), **options)
    return BOTH[name][0](config, T, training=training)


def frames_folder(root: Path, T: int = 4) -> Path:
    return root / f"frames_number_{T}_split_by_number"


def empty_frames(root: Path, folders: dict[str, list[str]], T: int = 4) -> Path:
    """Frames that are there by name only, as if others had made them."""
    for folder, names in folders.items():
        path = frames_folder(root, T) / folder
        path.mkdir(parents=True)
        for name in names:
            (path / f"{name}.npz").touch()
    return root


def assert_correct(data: EventData, written: dict[str, Events], root: Path, T: int = 4) -> None:
    """Every recording is in one of the splits, with its label and its events."""
    found = set()
    for source in (data.train, data.test):
        assert source.targets.tolist() == [label for _, label in source.samples]
        for index, (path, label) in enumerate(source.samples):
            frames, got = source[index]
            file = str(Path(path).relative_to(frames_folder(root, T)))
            found.add(file)
            assert got == label
            assert frames.dtype == torch.int16 and frames.shape == (T, 2, 128, 128)
            assert np.array_equal(frames.numpy(), expected_frames(written[file], T))
    assert found == set(written)
