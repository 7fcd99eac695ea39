"""Event augmentation against torchvision, sample by sample, and its random choices."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as F

from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.event_transforms import (
    OPERATIONS,
    EventAugmentation,
    EventFrames,
    cutout,
    operation_matrices,
    random_squares,
    rotate_matrix,
    shear_x_matrix,
    translate_matrix,
    warp,
)
from qkformer.data.mixup import Mixup
from qkformer.data.source import DataError

SIZES = [(128, 128), (16, 16), (17, 17), (7, 12), (33, 20)]
# operation -> the 31 magnitudes, and what torchvision makes of a sample with one of them
TORCHVISION = {
    "shear_x": (
        np.linspace(-0.3, 0.3, 31),
        lambda frames, m: F.affine(frames, 0.0, [0, 0], 1.0, [math.degrees(m), 0.0]),
    ),
    "translate_x": (
        np.linspace(-5, 5, 31),
        lambda frames, m: F.affine(frames, 0.0, [int(m), 0], 1.0, [0.0, 0.0]),
    ),
    "translate_y": (
        np.linspace(-5, 5, 31),
        lambda frames, m: F.affine(frames, 0.0, [0, int(m)], 1.0, [0.0, 0.0]),
    ),
    "rotate": (np.linspace(-30, 30, 31), F.rotate),
}


def distinct(*shape):
    """int16 frames in which no two pixels of a frame are alike and none is 0."""
    size = shape[-1] * shape[-2]
    values = torch.arange(1, size + 1, dtype=torch.int16).view(shape[-2:])
    return values.expand(shape).contiguous()


def augmented(frames, image_size=None, **augmentation):
    """Augmented frames; without mixup, labels stay what they are."""
    size, labels = frames.shape[-1], torch.arange(len(frames), device=frames.device)
    augment = EventAugmentation(AugmentationConfig(**augmentation), size, image_size or size, 10)
    result, targets = augment(frames, labels, epoch=0)
    assert targets is labels
    return result


def numbered(batch, size=16):
    """Frames that tell samples, frames and channels apart."""
    frames = distinct(batch, 3, 2, size, size)
    return frames + torch.arange(batch * 6, dtype=torch.int16).view(batch, 3, 2, 1, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_magnitude_is_what_torchvision_does(name, size):
    magnitudes, reference = TORCHVISION[name]
    frames = distinct(31, 2, 2, *size)
    warped = warp(frames, operation_matrices()[OPERATIONS.index(name)])
    assert warped.dtype == torch.int16
    for before, after, magnitude in zip(frames, warped, magnitudes.tolist(), strict=True):
        assert torch.equal(after, reference(before, magnitude))


def test_matrices_are_those_of_the_operations():
    frames = distinct(1, 1, 1, 9, 14)
    image = frames[0, 0]
    for matrix, expected in [
        (shear_x_matrix(0.25), F.affine(image, 0.0, [0, 0], 1.0, [math.degrees(0.25), 0.0])),
        (translate_matrix(3, -2), F.affine(image, 0.0, [3, -2], 1.0, [0.0, 0.0])),
        (rotate_matrix(77.0), F.rotate(image, 77.0)),
    ]:
        assert torch.equal(warp(frames, matrix[None])[0, 0], expected)


def test_counts_survive_exactly():
    frames = torch.full((1, 1, 1, 5, 5), 32767, dtype=torch.int16)
    for dtype in (torch.int16, torch.float32, torch.int64):
        moved = warp(frames.to(dtype), translate_matrix(1, 0)[None])
        assert moved.unique().tolist() == [0, 32767] and moved.dtype == dtype


@pytest.mark.parametrize("size", SIZES)
def test_cutout_is_torchvisions_erase(size):
    torch.manual_seed(0)
    frames = distinct(64, 2, 2, *size)
    squares = random_squares(64, *size)
    erased = cutout(frames, squares)
    for before, after, (top, left, side) in zip(frames, erased, squares.tolist(), strict=True):
        assert torch.equal(after, F.erase(before, top, left, side, side, torch.zeros(())))


def test_squares_are_spread_as_torchvision_draws_them():
    torch.manual_seed(0)
    top, left, side = random_squares(20_000, 128, 128).unbind(1)
    assert (top >= 0).all() and (left >= 0).all()
    assert (torch.maximum(top, left) + side).max() == 128  # they reach the edge and end there
    assert side.min() == round(128 * 0.001**0.5) and side.max() == round(128 * 0.11**0.5)
    share = (side / 128.0) ** 2  # uniform, so its mean is the middle
    assert share.mean().item() == pytest.approx(0.111 / 2, rel=0.02)
    # a large square has fewer places: the mean depends on the side
    large = side > 35
    middle = (128 - side[large]).float().mean().item() / 2
    assert top[large].float().mean().item() == pytest.approx(middle, rel=0.05)


def test_samples_of_a_batch_do_not_depend_on_each_other():
    frames, matrices = numbered(31), operation_matrices()[OPERATIONS.index("rotate")]
    alone = [warp(frames[i : i + 1], matrices[i : i + 1]) for i in range(31)]
    assert torch.equal(warp(frames, matrices), torch.cat(alone))


def candidates(size):
    """Every result that the operations have for a sample, apart from cutout."""
    frame = distinct(1, 1, 1, size, size)
    for name in OPERATIONS[:-1]:
        for matrix in operation_matrices()[OPERATIONS.index(name)]:
            yield name, warp(frame, matrix[None]).flatten()


def test_operations_are_equally_likely_and_the_same_for_all_frames_of_a_sample():
    torch.manual_seed(0)
    batch, size = 6000, 16
    result = augmented(distinct(batch, 2, 2, size, size), auto_augment="event")
    assert result.dtype == torch.float32
    assert (result == result[:, :1, :1]).all()

    found = dict.fromkeys(OPERATIONS, 0.0)
    known = {}
    for name, pixels in candidates(size):
        known.setdefault(tuple(pixels.tolist()), []).append(name)
    for sample in result[:, 0, 0].flatten(1).short().tolist():
        names = known.get(tuple(sample), ["cutout"])
        for name in names:  # no move and no turn are the same: shared among the operations
            found[name] += 1 / len(names)
    assert found["cutout"] == pytest.approx(batch / 6, rel=0.1)
    for name in ("translate_x", "translate_y"):
        assert found[name] == pytest.approx(batch / 6, rel=0.25)
    assert found["rotate"] == pytest.approx(batch / 6, rel=0.25)
    assert sum(found.values()) == pytest.approx(batch)


def test_flip_has_its_probability():
    torch.manual_seed(0)
    frames = numbered(4000, 4)
    flipped = augmented(frames, hflip=0.3).short()
    was = (flipped == frames.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped[~was], frames[~was])
    assert was.float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_shift_moves_all_frames_of_a_sample_alike():
    torch.manual_seed(0)
    frames = distinct(32, 3, 2, 16, 16)
    shifted = augmented(frames, shift=2)
    assert (shifted == shifted[:, :1, :1]).all()
    assert len(shifted[:, 0, 0].flatten(1).unique(dim=0)) > 10


ALL_ON = dict(hflip=0.5, auto_augment="event", shift=2)


def test_the_seed_decides():
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(augmented(numbered(16), 8, **ALL_ON))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.gpu
def test_gpu_does_the_same():
    frames = torch.randint(0, 99, (64, 4, 2, 129, 129), dtype=torch.int16)
    torch.manual_seed(0)
    expected = augmented(frames, 43, **ALL_ON)
    torch.manual_seed(0)
    assert torch.equal(augmented(frames.cuda(), 43, **ALL_ON).cpu(), expected)
    matrices = operation_matrices().flatten(0, 1)
    frames = distinct(len(matrices), 1, 1, 129, 129)
    with torch.autocast("cuda", torch.float16):
        warped = warp(frames.cuda(), matrices.cuda())
    assert torch.equal(warped.cpu(), warp(frames, matrices))


def test_frames_are_mixed_as_the_model_takes_them():
    """Behind everything else: not the counts are mixed, but what has moved and been summed."""
    config = AugmentationConfig(**ALL_ON, mixup_alpha=0.5)
    labels = torch.arange(6)
    torch.manual_seed(0), np.random.seed(0)
    mixed, targets = EventAugmentation(config, 16, 8, 6)(numbered(6), labels, epoch=0)
    torch.manual_seed(0), np.random.seed(0)
    expected = Mixup(config, 6)(augmented(numbered(6), 8, **ALL_ON), labels, epoch=0)
    assert torch.equal(mixed, expected[0]) and torch.equal(targets, expected[1])
    assert 0 < targets[0, 0] < 1 and (mixed % 1).any()


def test_nothing_on_is_the_identity_and_draws_nothing():
    frames, before = numbered(4), torch.get_rng_state()
    result = augmented(frames)
    assert result.dtype == torch.float32 and torch.equal(result, frames.float())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("image_size", [16, 8, 4, 1])
def test_smaller_frames_keep_every_event(image_size):
    frames = numbered(3)
    block = 16 // image_size
    expected = torch.zeros(3, 3, 2, image_size, image_size)
    for y in range(16):
        for x in range(16):
            expected[..., y // block, x // block] += frames[..., y, x]
    assert torch.equal(EventFrames(16, image_size)(frames), expected)


@pytest.mark.parametrize("image_size", [7, 32, 12])
def test_sizes_that_do_not_divide_are_refused(image_size):
    with pytest.raises(DataError, match=r"data\.image_size"):
        EventFrames(16, image_size)


@pytest.mark.parametrize(
    "key, options",
    [
        ("crop_scale", dict(crop_scale=(0.5, 1.0))),
        ("crop_scale", dict(crop_scale=(0.5, 1.0), crop_ratio=(1.0, 1.0))),
        ("erasing_prob", dict(erasing_prob=0.25)),
        ("erasing_mode", dict(erasing_mode="pixel")),
        ("auto_augment", dict(auto_augment="rand-m9")),
    ],
)
def test_keys_that_do_not_act_are_refused(key, options):
    with pytest.raises(DataError, match=rf"augmentation\.{key}"):
        EventAugmentation(AugmentationConfig(**options), 16, 16, 10)
