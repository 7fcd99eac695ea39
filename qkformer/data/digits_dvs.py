"""scikit-learn's digits as an event camera would see them: real images, simulated events.

N-MNIST (Orchard et al., 2015) was recorded by a camera that made three saccades, CIFAR10-DVS (Li et
al., 2017) from images that went around a closed loop, several times. Here each image moves once
along the sides of a triangle, a saccade each, back to where it began. A pixel of the camera
remembers the logarithm of the intensity at its last event, and emits an ON (OFF) event when that of
the intensity has since risen (fallen) by a threshold; a change of several thresholds emits as many
events. This is ESIM's model (Rebecq et al., 2018), and as there the logarithm changes linearly from
one image to the next.

Not simulated: noise, thresholds that differ between pixels, refractory time, limited bandwidth and
latency, a screen's flicker, and that a saccade speeds up and slows down: these events are cleaner
than a camera's. There are no random numbers: a recording is a function of its image. Positions,
intensities, their logarithms and times are integers, so that it is the same on every machine.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import TensorDataset

from qkformer.data.digits import WHITE, read_digits
from qkformer.data.source import DataConfig, EventData, frames_per_recording

SIZE = 32  # height and width of the camera, in pixels
SCALE = 3  # pixels of the camera to a pixel of an image
UNITS = 16  # of position, to a pixel of the camera
STEPS = 32  # images to a saccade, between which the logarithm changes linearly
STEP_US = 3125  # time from one to the next: a saccade takes 0.1 s, as N-MNIST's
CORNERS = ((-2, 2), (0, -2), (2, 2), (-2, 2))  # of the triangle, in pixels (right, down)

BRIGHTEST = WHITE * (SCALE * UNITS) ** 2  # of an interpolated image
BLACK = BRIGHTEST // 16  # what the camera sees of black, in the same unit
LOG_UNIT = 1e-4
THRESHOLD = 3000  # in LOG_UNIT: an intensity 35 % higher, or 26 % lower
LOGARITHM = np.array(
    [round(math.log(BLACK + value) / LOG_UNIT) for value in range(BRIGHTEST + 1)], dtype=np.int32
)

PART = 64  # images simulated at once: what a step needs stays in the processor's cache

Events = dict[str, np.ndarray]  # t in microseconds, x, y, and p: 1 for ON, 0 for OFF; in order of t


def digits_dvs(config: DataConfig, *, T: int | None = None, training: bool = True) -> EventData:
    """1797 recordings of 32 x 32 pixels and 0.3 s, simulated in seconds and kept in memory.

    The split is that of the digits.

    Args:
        T: Frames per recording, split by number of events.
        training: Whether to simulate the training samples too.

    Raises:
        DataError: no T, scikit-learn is not installed, or `config.root` is set.
    """
    T = frames_per_recording(T, config.name)
    digits = read_digits(config)

    def recorded(samples: np.ndarray) -> TensorDataset:
        frames = np.stack([integrate(events, T) for events in record(digits.images[samples])])
        return TensorDataset(torch.from_numpy(frames), torch.from_numpy(digits.labels[samples]))

    train = recorded(digits.train) if training else None
    return EventData(train, recorded(digits.test), num_classes=10, size=SIZE)


def record(images: np.ndarray) -> Iterator[Events]:
    """The events of each image, integers 0 to `WHITE` [N, h, w], moved along the triangle."""
    path = triangle()
    for start in range(0, len(images), PART):
        yield from emit(view(images[start : start + PART], path))


def triangle() -> np.ndarray:
    """Where the image is at every step, in `UNITS` right and down from the centre, [steps, 2]."""
    corners = np.array(CORNERS) * UNITS
    moves = np.repeat(np.diff(corners, axis=0) // STEPS, STEPS, axis=0)
    return np.concatenate([corners[:1], corners[0] + moves.cumsum(axis=0)])


def view(images: np.ndarray, path: np.ndarray) -> Iterator[np.ndarray]:
    """Logarithms of the intensity at the camera's pixels, int32 [N, SIZE, SIZE] for every step.

    The images, [N, h, w], are enlarged bilinearly, in front of black.

    Args:
        path: As of `triangle`.
    """
    images = images.astype(np.float32)  # holds every integer below; products of float are faster
    rows = _weights(images.shape[1], path[:, 1])
    columns = _weights(images.shape[2], path[:, 0])
    for row, column in zip(rows, columns, strict=True):
        yield LOGARITHM[(row @ images @ column.T).astype(np.intp)]


def _weights(size: int, positions: np.ndarray) -> np.ndarray:
    """What the pixels of an image along an axis add to those of the camera, [steps, SIZE, size]."""
    pixel = SCALE * UNITS
    camera = (2 * np.arange(SIZE) - (SIZE - 1)) * UNITS // 2  # from the centre
    image = (2 * np.arange(size) - (size - 1)) * pixel // 2
    distance = np.abs(camera[:, None] - image - positions[:, None, None])
    return np.maximum(pixel - distance, 0).astype(np.float32)


def emit(logarithms: Iterable[np.ndarray]) -> list[Events]:
    """The events of every pixel whose logarithm, int32 [N, H, W] step by step, is given."""
    logarithms = iter(logarithms)
    before = next(logarithms)
    reference = before.ravel().copy()
    pixels, times, polarities = [], [], []
    for step, after in enumerate(logarithms):
        change = after.ravel() - reference
        crossed = np.abs(change) // THRESHOLD
        pixel = np.flatnonzero(crossed)
        count, sign = crossed[pixel], np.sign(change[pixel])
        pixel, sign, nth = np.repeat(pixel, count), np.repeat(sign, count), _nth(count)
        start, end = before.ravel()[pixel], after.ravel()[pixel]
        way = sign * (reference[pixel] - start) + nth * THRESHOLD  # to the level that is crossed
        passed = -(-way * STEP_US // np.abs(end - start))  # rounded up
        pixels.append(pixel)
        times.append(step * STEP_US + passed)
        polarities.append(sign > 0)
        reference += np.sign(change) * crossed * THRESHOLD
        before = after
    pixel, t, p = (np.concatenate(parts) for parts in (pixels, times, polarities))
    image, y, x = np.unravel_index(pixel, before.shape)
    order = np.lexsort((t, image))
    events = {"t": t, "x": x, "y": y, "p": p.astype(np.int64)}
    ends = np.bincount(image, minlength=len(before)).cumsum()[:-1]
    parts = {key: np.split(value[order], ends) for key, value in events.items()}
    return [dict(zip(parts, each, strict=True)) for each in zip(*parts.values(), strict=True)]


def _nth(counts: np.ndarray) -> np.ndarray:
    """[2, 1, 3] -> [1, 2, 1, 1, 2, 3]"""
    return np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + 1


def integrate(events: Events, T: int) -> np.ndarray:
    """Events of either polarity, int16 [T, 2, SIZE, SIZE]: as of the recorded data sets.

    T parts of equally many events; the last has the rest as well.
    """
    from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number

    frames = integrate_events_by_fixed_frames_number(events, "number", T, SIZE, SIZE)
    return frames.astype(np.int16)
