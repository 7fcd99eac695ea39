"""Transforms of images: those of the published recipes, on images of every form and size."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from qkformer.data import image_transforms
from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.cifar import CIFAR_MEAN, CIFAR_STD
from qkformer.data.image_transforms import training_transform
from qkformer.data.samples import seeded
from qkformer.data.source import DataConfig, DataError

IMAGENET = AugmentationConfig(
    crop_scale=(0.08, 1.0),
    hflip=0.5,
    auto_augment="rand-m9-mstd0.5-inc1",
    erasing_prob=0.25,
    erasing_mode="pixel",
)
CIFAR = AugmentationConfig(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    hflip=0.5,
    auto_augment="rand-m9-n1-mstd0.4-inc1",
    erasing_prob=0.25,
    erasing_mode="const",
)


def config(size, crop_pct=None):
    return DataConfig(name="imagenet", image_size=size, batch_size=4, crop_pct=crop_pct)


def picture(width=97, height=71, channels=3, seed=0):
    """A PIL image with edges and noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, channels)).repeat(-(-height // 4), 0)
    image = coarse.repeat(-(-width // 4), 1)[:height, :width] + rng.normal(0, 9, (1, 1, channels))
    image = np.clip(image, 0, 255).astype(np.uint8)
    return Image.fromarray(image if channels == 3 else image[..., 0])


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


# ---- training


def published_imagenet():
    """As the published command builds it, up to the point where images leave the processor."""
    return create_transform(
        input_size=224,
        is_training=True,
        use_prefetcher=True,
        color_jitter=None,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


def published_cifar():
    return create_transform(
        input_size=(3, 32, 32),
        is_training=True,
        use_prefetcher=True,
        scale=[1.0, 1.0],
        ratio=[1.0, 1.0],
        hflip=0.5,
        color_jitter=0.0,
        auto_augment="rand-m9-n1-mstd0.4-inc1",
        interpolation="bicubic",
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
    )


@pytest.mark.parametrize(
    ("augmentation", "mean", "published", "size", "original"),
    [
        (IMAGENET, IMAGENET_DEFAULT_MEAN, published_imagenet, 224, (301, 257)),
        (CIFAR, CIFAR_MEAN, published_cifar, 32, (32, 32)),
    ],
)
def test_training_is_augmented_as_published(augmentation, mean, published, size, original):
    ours, theirs = training_transform(augmentation, config(size), mean), published()
    images = set()
    for seed in range(25):
        image = picture(*original, seed=seed)
        seed_everything(seed)
        expected = theirs(image)
        seed_everything(seed)
        result = ours(image)
        assert result.dtype == torch.uint8
        assert result.shape == (3, size, size)
        assert torch.equal(result, expected)
        images.add(result.numpy().tobytes())
    assert len(images) == 25


def test_crops_keep_to_scale_and_ratio():
    """On a ramp of x and y, the corners tell where a crop was taken."""
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    ramp = Image.fromarray(np.stack([x, y, x], -1).astype(np.uint8))
    augmentation = AugmentationConfig(crop_scale=(0.3, 0.6), crop_ratio=(0.5, 2.0))
    crop = training_transform(augmentation, config(64), (0.5,) * 3)
    areas, ratios = [], []
    for seed in range(100):
        with seeded(seed):
            left, right = crop(ramp)[0, 32, [0, -1]].tolist()
            # the same crop again, now for its height
        with seeded(seed):
            top, bottom = crop(ramp)[1, [0, -1], 32].tolist()
        width, height = (right - left) * 64 / 63, (bottom - top) * 64 / 63
        areas.append(width * height / 256**2)
        ratios.append(width / height)
    assert 0.27 < min(areas) < 0.4 and 0.5 < max(areas) < 0.65
    assert 0.45 < min(ratios) < 0.7 and 1.4 < max(ratios) < 2.2


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_flips_have_their_probability(share):
    augmentation = AugmentationConfig(hflip=share)
    image = picture(8, 8)
    flip = training_transform(augmentation, config(8, crop_pct=1.0), (0.5,) * 3)
    before = image_transforms.test_transform(config(8, crop_pct=1.0))(image)
    flips = 0
    for seed in range(200):
        with seeded(seed):
            after = flip(image)
        flipped = torch.equal(after, before.flip(-1))
        assert flipped or torch.equal(after, before)
        flips += flipped
    assert abs(flips / 200 - share) < 0.1


@pytest.mark.parametrize("crop_pct", [None, 0.5, 1.0])
def test_without_a_random_crop_images_are_cut_out_as_in_testing(crop_pct):
    still = config(48, crop_pct)
    training = training_transform(AugmentationConfig(), still, (0.5,) * 3)
    testing = image_transforms.test_transform(still)
    for image in (picture(), picture(30, 90), picture(48, 48)):
        assert torch.equal(training(image), testing(image))


def test_without_a_random_crop_flips_and_policy_still_act():
    augmentation = AugmentationConfig(hflip=1.0, auto_augment="rand-m9-n4-inc1-p1")
    transform = training_transform(augmentation, config(32), (0.5,) * 3)
    still = image_transforms.test_transform(config(32))(picture()).flip(-1)
    with seeded(0):
        assert not torch.equal(transform(picture()), still)


@pytest.mark.parametrize(
    "policy",
    ["rand-m9-mstd0.5-inc1", "rand-m9-n3", "original", "v0r-mstd0.5", "augmix-m5", "3a", "cifar10"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_work_on_grey_and_on_coloured_images(policy, channels):
    augmentation = AugmentationConfig(auto_augment=policy, hflip=0.5)
    transform = training_transform(augmentation, config(16, crop_pct=1.0), (0.3,) * channels)
    image = picture(8, 8, channels)
    changed = 0
    still = image_transforms.test_transform(config(16, crop_pct=1.0))(image)
    for seed in range(30):
        with seeded(seed):
            result = transform(image)
        assert result.shape == (channels, 16, 16)
        assert result.dtype == torch.uint8
        changed += not torch.equal(result, still)
    assert changed > 12


@pytest.mark.parametrize("policy", ["rand-m9-n1-p1-inc1", "cifar10"])
def test_holes_are_filled_with_the_mean(policy):
    augmentation = AugmentationConfig(auto_augment=policy)
    transform = training_transform(augmentation, config(16, crop_pct=1.0), (0.2,))
    image = Image.fromarray(np.full((16, 16), 255, np.uint8))
    found = set()
    for seed in range(200):
        with seeded(seed):
            found |= set(transform(image).flatten().tolist())
    assert round(0.2 * 255) in found
    assert round(0.485 * 255) not in found  # ImageNet's, timm's default


@pytest.mark.parametrize(
    "policy",
    [
        "event",
        "",
        "rnd-m9",
        "rand-m9x",
        "rand-m9_mstd0.5-inc1",
        "rand-q4",
        "rand-m9-inc",
        "rand--m9",
        "rand-tsomething",
        "rand-n20-tweights",
        "random-m9",
        "augmix-w3-foo",
        "v1",
    ],
)
def test_a_policy_that_would_fail_or_be_ignored_is_refused(policy):
    before = random.getstate()
    with pytest.raises(DataError, match=r"^augmentation\.auto_augment: .*rand-m9-mstd0") as caught:
        training_transform(AugmentationConfig(auto_augment=policy), config(16), (0.5,) * 3)
    assert "\n" not in str(caught.value)
    assert repr(policy) in str(caught.value)
    assert random.getstate() == before


@pytest.mark.parametrize("policy", [None, "rand-m9-mstd0.5-inc1"])
def test_building_a_transform_leaves_random_numbers_alone(policy):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    training_transform(AugmentationConfig(auto_augment=policy), config(16), (0.5,) * 3)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


def test_transforms_can_be_sent_to_workers():
    with seeded(1):
        expected = training_transform(IMAGENET, config(32), IMAGENET_DEFAULT_MEAN)(picture())
    sent = training_transform(IMAGENET, config(32), IMAGENET_DEFAULT_MEAN)
    sent = pickle.loads(pickle.dumps(sent))
    with seeded(1):
        assert torch.equal(sent(picture()), expected)
    still = pickle.loads(pickle.dumps(image_transforms.test_transform(config(32))))
    assert still(picture()).shape == (3, 32, 32)


# ---- testing


@pytest.mark.parametrize("original", [(301, 257), (120, 500), (256, 256)])
@pytest.mark.parametrize(("size", "side"), [(224, 256), (32, 36), (288, 288), (384, 384)])
def test_testing_cuts_out_the_centre_as_published(size, side, original):
    expected = transforms.Compose(
        [
            transforms.Resize(side, interpolation=InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.PILToTensor(),
        ]
    )
    image = picture(*original)
    assert torch.equal(image_transforms.test_transform(config(size))(image), expected(image))


@pytest.mark.parametrize(("size", "crop_pct"), [(224, 0.95), (64, 0.9), (32, 1.0), (160, 0.875)])
def test_crop_pct_is_timms(size, crop_pct):
    expected = create_transform(
        size, is_training=False, use_prefetcher=True, interpolation="bicubic", crop_pct=crop_pct
    )
    transform = image_transforms.test_transform(config(size, crop_pct))
    assert torch.equal(transform(picture()), expected(picture()))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_tensors_are_images_too(channels, training):
    if training:
        transform = training_transform(CIFAR, config(12), (0.5,) * channels)
    else:
        transform = image_transforms.test_transform(config(12))
    image = picture(8, 8, channels)
    tensor = torch.from_numpy(np.array(image)).view(8, 8, channels).permute(2, 0, 1)
    for seed in range(5):
        with seeded(seed):
            expected = transform(image)
        with seeded(seed):
            assert torch.equal(transform(tensor), expected)


def test_an_image_of_the_right_size_stays_as_it_is():
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(image_transforms.test_transform(config(32, crop_pct=1.0))(image), image)


@pytest.mark.parametrize(
    "change",
    [
        {"shift": -1},
        {"hflip": 1.5},
        {"erasing_prob": -0.1},
        {"erasing_mode": "noise"},
        {"crop_scale": (0.5, 1.5)},
        {"crop_ratio": (1.0, 1.0)},
        {"crop_ratio": (1.0, float("inf")), "crop_scale": (0.5, 1.0)},
    ],
)
def test_impossible_values_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        AugmentationConfig(**change)
