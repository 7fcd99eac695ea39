"""Batch transforms against their definition, image by image."""

import pytest
import torch

from qkformer.data.transforms import AugmentationConfig, Normalise, random_shift


def test_normalise_subtracts_the_mean_and_divides_by_the_std():
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = torch.stack(
        [(images[:, c] / 255 - mean[c]) / std[c] for c in range(3)],
        dim=1,
    )
    torch.testing.assert_close(Normalise(mean, std)(images), expected)


def test_normalise_adds_nothing_to_a_state_dict():
    assert not Normalise((0.5,), (0.5,)).state_dict()


@pytest.mark.parametrize("pixels", [1, 3])
def test_every_image_moves_by_its_own_whole_number_of_pixels(pixels):
    torch.manual_seed(0)
    images = torch.randint(1, 256, (64, 2, 6, 9), dtype=torch.uint8)
    shifted = random_shift(images, pixels)
    assert shifted.dtype == torch.uint8
    moves = range(-pixels, pixels + 1)
    found = set()
    for before, after in zip(images, shifted, strict=True):
        fits = [
            (down, right)
            for down in moves
            for right in moves
            if torch.equal(after, moved(before, down, right))
        ]
        assert len(fits) == 1
        found.add(fits[0])
    assert {down for down, _ in found} == {right for _, right in found} == set(moves)


def moved(image, down, right):
    """One image moved pixel by pixel, zeros from outside."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[:, y, x] = image[:, y - down, x - right]
    return result


def test_no_shift_leaves_images_and_random_numbers_alone():
    images = torch.ones(2, 1, 4, 4)
    before = torch.get_rng_state()
    assert random_shift(images, 0) is images
    assert torch.equal(torch.get_rng_state(), before)


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match="shift"):
        AugmentationConfig(shift=-1)
