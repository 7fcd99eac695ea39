"""The digits as events: the threshold model to the microsecond, the motion, the split."""

import hashlib
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qkformer.data import digits_dvs as module
from qkformer.data.digits import read_digits
from qkformer.data.digits_dvs import (
    BLACK,
    BRIGHTEST,
    LOG_UNIT,
    LOGARITHM,
    SIZE,
    STEP_US,
    THRESHOLD,
    UNITS,
    digits_dvs,
    emit,
    integrate,
    record,
    triangle,
    view,
)
from qkformer.data.source import DataConfig, DataError


def config(**changes):
    return DataConfig(**{"name": "digits-dvs", "image_size": SIZE, "batch_size": 4, **changes})


@pytest.fixture(scope="module")
def images():
    return read_digits(config()).images[:3]


@pytest.fixture(scope="module")
def recordings(images):
    return list(record(images))


def rows(events):
    """[events, 4] of t, y, x, p, in an order that does not depend on that of simultaneous ones."""
    return np.array(sorted(zip(*(events[key].tolist() for key in "tyxp"), strict=True)))


# ------------------------------------------------------------------------------- threshold model


def one_by_one(logarithms):
    """The model as it is described, pixel by pixel, in exact fractions."""
    steps, height, width = logarithms.shape
    found = []
    for y in range(height):
        for x in range(width):
            seen = logarithms[:, y, x].tolist()
            reference = seen[0]
            for step in range(steps - 1):
                before, after = seen[step : step + 2]
                while abs(after - reference) >= THRESHOLD:
                    sign = 1 if after > reference else -1
                    reference += sign * THRESHOLD
                    passed = Fraction(reference - before, after - before)
                    found.append((math.ceil((step + passed) * STEP_US), y, x, int(sign > 0)))
    return np.array(sorted(found))


def test_events_are_those_of_the_model_pixel_by_pixel():
    random = np.random.default_rng(0)
    logarithms = random.integers(-4 * THRESHOLD, 4 * THRESHOLD, (9, 2, 3, 5), dtype=np.int32)
    logarithms[4:6] = logarithms[3] + random.integers(-THRESHOLD, THRESHOLD, (2, 2, 3, 5))
    for image, events in enumerate(emit(logarithms)):
        expected = one_by_one(logarithms[:, image])
        assert len(expected) > 50
        assert np.array_equal(rows(events), expected)
        assert (np.diff(events["t"]) >= 0).all()


def test_signed_events_follow_the_logarithm_within_a_threshold(images, recordings):
    logarithms = list(view(images, triangle()))
    for step in (0, 7, 32, 50, 96):
        for image, events in enumerate(recordings):
            till = events["t"] <= step * STEP_US
            memory = logarithms[0][image].astype(np.int64)
            signs = 2 * events["p"][till] - 1
            np.add.at(memory, (events["y"][till], events["x"][till]), signs * THRESHOLD)
            assert np.abs(memory - logarithms[step][image]).max() < THRESHOLD
    assert all(len(events["t"]) > 3000 for events in recordings)


def test_a_closed_loop_ends_with_as_many_on_as_off_events_in_every_pixel(recordings):
    for events in recordings:
        off, on = integrate(events, 1)[0]
        assert np.array_equal(on, off) and on.max() > 5


def test_what_stands_still_emits_nothing(images):
    for events in emit(view(images, np.zeros((4, 2), dtype=int))):
        assert [len(events[key]) for key in "txyp"] == [0, 0, 0, 0]
        assert not integrate(events, 3).any()


def test_negative_logarithms_swap_the_polarities(images):
    negative = emit(-each for each in view(images, triangle()))
    for events, swapped in zip(record(images), negative, strict=True):
        assert np.array_equal(rows(events | {"p": 1 - events["p"]}), rows(swapped))


# ---------------------------------------------------------------------------------------- motion


def test_an_image_is_enlarged_bilinearly_in_front_of_black(images):
    (logarithms,) = view(images, np.zeros((1, 2), dtype=int))
    intensity = np.exp(logarithms * LOG_UNIT) - BLACK
    framed = F.pad(torch.from_numpy(images).double(), (2, 2, 2, 2))[:, None]
    expected = F.interpolate(framed, size=36, mode="bilinear")[:, 0, 2:-2, 2:-2]
    np.testing.assert_allclose(intensity / 48**2, expected, atol=16 * LOG_UNIT)


def test_positions_are_in_pixels_right_and_down(images):
    still, moved = view(images, np.array([[0, 0], [1, -2]]) * UNITS)
    assert np.array_equal(np.roll(still, (-2, 1), axis=(1, 2)), moved)


def test_three_saccades_lead_back_to_where_they_began():
    path = triangle()
    steps = np.diff(path, axis=0)
    assert path[0].tolist() == path[-1].tolist()
    assert len(np.unique(steps, axis=0)) == 3
    assert np.abs(steps).max() <= UNITS / 8


def test_no_part_of_an_image_leaves_the_camera():
    weights = module._weights(8, triangle().ravel()).sum(axis=1)
    assert np.unique(weights).tolist() == [3 * 48]


def test_the_mirrored_image_on_the_mirrored_path_emits_the_mirrored_events(images):
    mirrored = emit(view(images[:, :, ::-1], triangle() * [-1, 1]))
    for events, other in zip(record(images), mirrored, strict=True):
        assert np.array_equal(rows(events | {"x": SIZE - 1 - events["x"]}), rows(other))


def test_a_bright_pixel_that_moves_right_is_on_in_front_and_off_behind():
    dot = np.full((1, 1, 1), 16)
    (events,) = emit(view(dot, np.array([[-UNITS * 4, 0], [UNITS * 4, 0]])))
    middle = (SIZE - 1) / 2
    assert events["x"][events["p"] == 1].min() > middle > events["x"][events["p"] == 0].max()


# -------------------------------------------------------------------------------------- data set


def test_frames_hold_every_event_in_parts_of_the_same_number(recordings):
    for events in recordings:
        frames, count = integrate(events, 7), len(events["t"])
        assert frames.dtype == np.int16 and frames.shape == (7, 2, SIZE, SIZE)
        sums = frames.sum(axis=(1, 2, 3))
        assert sums.tolist() == [count // 7] * 6 + [count - count // 7 * 6]
        first = {key: value[: count // 7] for key, value in events.items()}
        assert np.array_equal(frames[0], integrate(first, 1)[0])


def test_a_recording_does_not_depend_on_those_beside_it(images, recordings, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    for events, others in zip(record(images), recordings, strict=True):
        assert all(np.array_equal(events[key], others[key]) for key in "txyp")


def test_no_logarithm_is_so_close_to_a_tie_that_a_library_could_round_it_otherwise():
    exact = np.log(BLACK + np.arange(BRIGHTEST + 1)) / LOG_UNIT
    assert np.abs(exact - LOGARITHM).max() < 0.5 - 1e-8


def test_the_events_are_the_same_on_every_machine(recordings):
    content = b"".join(
        events[key].astype("<i8").tobytes() for events in recordings for key in "txyp"
    )
    assert hashlib.sha256(content).hexdigest()[:16] == "3807f4387b8b0aca"


def test_recordings_have_the_split_and_the_labels_of_the_digits(monkeypatch):
    digits = read_digits(config())
    few = replace(digits, train=digits.train[:3], test=digits.test[-2:])
    monkeypatch.setattr(module, "read_digits", lambda _: few)
    data = digits_dvs(config(), T=4)
    for part, samples in ((data.train, few.train), (data.test, few.test)):
        assert len(part) == len(samples)
        events = record(digits.images[samples])
        for (frames, label), sample, expected in zip(part, samples, events, strict=True):
            assert label == digits.labels[sample]
            assert frames.dtype == torch.int16
            assert np.array_equal(frames, integrate(expected, 4))
    assert digits_dvs(config(), T=4, training=False).train is None


@pytest.mark.parametrize(
    ("changes", "T", "key"), [({"root": "/data"}, 4, "root"), ({}, None, "T"), ({}, 0, "T")]
)
def test_what_cannot_be_names_its_key(changes, T, key):
    with pytest.raises(DataError, match=rf"\.{key}: .*digits-dvs"):
        digits_dvs(config(**changes), T=T)


def test_a_crop_that_event_frames_would_ignore_is_refused():
    with pytest.raises(ValueError, match=r"crop_pct: .*digits-dvs"):
        config(crop_pct=1.0)
