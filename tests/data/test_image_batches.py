"""Batches of images on their device: moved, normalised, erased; mixing has a file of its own."""

import random

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing
from torch.utils.data import TensorDataset

from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.cifar import CIFAR_MEAN, CIFAR_STD
from qkformer.data.image_transforms import ImageAugmentation, Normalise, random_shift
from qkformer.data.registry import DATASETS, load_data
from qkformer.data.source import DataConfig, DataError, ImageData


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def augment(images, mean=CIFAR_MEAN, std=CIFAR_STD, **augmentation):
    """Augmented images; without mixup, labels stay what they are."""
    labels = torch.arange(len(images), device=images.device)
    module = ImageAugmentation(AugmentationConfig(**augmentation), mean, std, len(images))
    result, targets = module.to(images.device)(images, labels, epoch=0)
    assert targets is labels
    return result


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("shift", [0, 2])
def test_a_batch_is_shifted_then_normalised_then_erased(mode, shift):
    images = torch.randint(0, 256, (16, 3, 20, 24), dtype=torch.uint8)
    original = images.clone()
    seed_everything(3)
    expected = Normalise(CIFAR_MEAN, CIFAR_STD)(random_shift(images, shift))
    expected = RandomErasing(0.5, mode=mode, device="cpu")(expected)
    seed_everything(3)
    result = augment(images, shift=shift, erasing_prob=0.5, erasing_mode=mode)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
    assert torch.equal(images, original)


def test_erasing_has_its_probability_and_its_modes():
    images = torch.full((400, 3, 16, 16), 200, dtype=torch.uint8)
    plain = Normalise((0.1,) * 3, (0.3,) * 3)(images[:1])[0, 0, 0, 0]
    values = {}
    for mode in ("const", "rand", "pixel"):
        seed_everything(0)
        result = augment(images, (0.1,) * 3, (0.3,) * 3, erasing_prob=0.25, erasing_mode=mode)
        changed = (result != plain).flatten(1).any(1)
        assert abs(changed.float().mean() - 0.25) < 0.06
        values[mode] = [image[image != plain].unique() for image in result[changed]]
    assert all(erased.tolist() == [0] for erased in values["const"])
    assert all(len(erased) == 3 for erased in values["rand"])
    assert all(len(erased) > 10 for erased in values["pixel"])


def test_without_augmentation_a_batch_is_normalised_and_nothing_is_drawn():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    states = (random.getstate, torch.get_rng_state, lambda: np.random.get_state()[1:3])
    before = [str(state()) for state in states]
    assert torch.equal(augment(images), Normalise(CIFAR_MEAN, CIFAR_STD)(images))
    assert [str(state()) for state in states] == before


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_a_batch_on_the_gpu_stays_there(mode):
    """Shifts and rectangles are those of the CPU; what fills the rectangles may differ."""
    images = torch.randint(0, 256, (16, 3, 20, 24), dtype=torch.uint8)
    seed_everything(0)
    on_cpu = augment(images, shift=2, erasing_prob=0.5, erasing_mode=mode)
    seed_everything(0)
    on_gpu = augment(images.cuda(), shift=2, erasing_prob=0.5, erasing_mode=mode)
    assert on_gpu.is_cuda
    if mode == "const":
        torch.testing.assert_close(on_gpu.cpu(), on_cpu)
    else:
        assert 0.5 < (on_gpu.cpu() - on_cpu).abs().lt(1e-5).float().mean() < 1


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
    """Zeros in front, as many pixels less behind."""
    return torch.nn.functional.pad(image, (right, -right, down, -down))


def test_no_shift_leaves_images_and_random_numbers_alone():
    images = torch.ones(2, 1, 4, 4)
    before = torch.get_rng_state()
    assert random_shift(images, 0) is images
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("given", [{}, {"mean": (0.1, 0.2, 0.3)}, {"std": (0.1, 0.2, 0.3)}])
def test_images_are_normalised_as_configured_or_as_their_data_set_is(given, monkeypatch):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    data = TensorDataset(images, torch.arange(5))
    source = ImageData(data, data, num_classes=5, mean=CIFAR_MEAN, std=CIFAR_STD)
    monkeypatch.setitem(DATASETS, "mine", lambda config, **_: source)
    config = DataConfig("mine", image_size=8, batch_size=1, **given)
    loaded = load_data(config, AugmentationConfig())
    values = {"mean": CIFAR_MEAN, "std": CIFAR_STD} | given
    mean, std = (torch.tensor(values[key]).view(3, 1, 1) for key in ("mean", "std"))
    for result in (loaded.prepare(images), loaded.augment(images, torch.arange(5), 0)[0]):
        torch.testing.assert_close(result, (images / 255 - mean) / std)


def test_a_mean_of_other_channels_is_refused():
    config = DataConfig("digits", image_size=8, batch_size=1, mean=(0.1, 0.2, 0.3))
    with pytest.raises(DataError, match=r"^data\.mean: is of 3 channels, digits has 1$"):
        load_data(config, AugmentationConfig())
