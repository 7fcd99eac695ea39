"""A training batch on its device: in timm's order for images, and nobody waits for the device."""

import random

import numpy as np
import pytest
import torch
from image_files import cifar_images
from PIL import Image
from timm.data import FastCollateMixup, create_loader
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.cifar import CIFAR_MEAN, CIFAR_STD
from qkformer.data.event_transforms import EventAugmentation
from qkformer.data.image_transforms import ImageAugmentation, training_transform
from qkformer.data.samples import Samples
from qkformer.data.source import DataConfig

CLASSES, SIZE = 10, 32


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Augmented(Dataset):
    """Images behind crop, flip and policy, as timm's loader takes them; notes in which order."""

    def __init__(self, augmentation):
        images, labels = cifar_images(2, CLASSES, seed=0)
        config = DataConfig("cifar10", image_size=SIZE, batch_size=8)
        source = [(Image.fromarray(i), label) for i, label in zip(images, labels, strict=True)]
        transform = training_transform(augmentation, config, CIFAR_MEAN)
        self.samples, self.order = Samples(source, transform), []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if not self.order:  # behind what timm's loader draws for the order
            seed_everything(5)
        self.order.append(index)
        image, label = self.samples[index, index]
        return image.numpy(), label

    def batches(self, size):
        for start in range(0, len(self) // size * size, size):
            indices = self.order[start : start + size]
            images, labels = zip(*(self.samples[index, index] for index in indices), strict=True)
            yield torch.stack(images), torch.tensor(labels)


@pytest.mark.parametrize(
    "augmentation",
    [
        AugmentationConfig(  # configs/cifar10*.yml, but for how often rectangles are erased
            crop_scale=(1.0, 1.0),
            crop_ratio=(1.0, 1.0),
            hflip=0.5,
            auto_augment="rand-m9-n1-mstd0.4-inc1",
            erasing_prob=0.6,
            erasing_mode="const",
            mixup_alpha=0.5,
        ),
        AugmentationConfig(erasing_prob=0.6, erasing_mode="pixel", mixup_alpha=1, mixup_prob=0.6),
        AugmentationConfig(erasing_prob=0.6, mixup_alpha=0.8, cutmix_alpha=1.0),
        AugmentationConfig(erasing_prob=0.6, erasing_mode="rand"),
    ],
    ids=["cifar", "pixel", "cutmix", "no mixup"],
)
def test_images_are_mixed_normalised_and_erased_as_by_timms_loader(augmentation):
    data = Augmented(augmentation)
    mixup = FastCollateMixup(
        mixup_alpha=augmentation.mixup_alpha,
        cutmix_alpha=augmentation.cutmix_alpha,
        prob=augmentation.mixup_prob,
        label_smoothing=0.0,
        num_classes=CLASSES,
    )
    loader = create_loader(
        data,
        (3, SIZE, SIZE),
        batch_size=4,
        is_training=True,
        re_prob=augmentation.erasing_prob,
        re_mode=augmentation.erasing_mode,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        num_workers=0,
        collate_fn=mixup if augmentation.mixup_alpha else None,
        device=torch.device("cpu"),
        persistent_workers=False,
    )
    expected = list(loader)
    augment = ImageAugmentation(augmentation, CIFAR_MEAN, CIFAR_STD, CLASSES)
    seed_everything(5)
    result = [augment(*batch, epoch=0) for batch in data.batches(4)]
    erased = 0
    for (ours, our_targets), (theirs, their_targets) in zip(result, expected, strict=True):
        # a step of grey is 0.015: what is mixed is rounded alike
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert torch.equal(our_targets, their_targets)
        assert our_targets.is_floating_point() == bool(augmentation.mixup_alpha)
        erased += (ours == 0).sum().item()
    assert (erased > 0) == (augmentation.erasing_mode == "const")
    assert len(expected) == 5


EVERYTHING = {"hflip": 0.5, "auto_augment": "event", "shift": 2, "mixup_alpha": 0.5}
EVENTS = AugmentationConfig(**EVERYTHING)
IMAGES = [
    AugmentationConfig(shift=2, erasing_prob=1.0, erasing_mode=mode, mixup_alpha=0.5)
    for mode in ("const", "rand", "pixel")
]
IMAGES.append(AugmentationConfig(cutout=3, erasing_prob=1.0, cutmix_alpha=1.0))


class NobodyWaits(TorchDispatchMode):
    """Refuses copies between CPU and GPU for which the CPU waits.

    Of values that the CPU reads, FakeTensorMode has none to give.
    """

    def __init__(self, pinned):
        super().__init__()
        self.pinned, self.copies = pinned, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if len({x.device.type for x in tensors if x.dim()}) > 1:
            assert function is torch.ops.aten._to_copy.default
            assert kwargs["non_blocking"] and id(args[0]) in self.pinned
            self.copies += 1
        return result


driver_needed = pytest.mark.skipif(
    torch.__version__.startswith("2.7.") and not torch.cuda.is_available(),
    reason="PyTorch 2.7 asks CUDA's driver even for tensors without data",
)


def on_a_gpu_that_is_not_there(build, shape, dtype, monkeypatch):
    """How often an augmentation sends something to the GPU."""
    pinned = {}
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.setdefault(id(x), x))
    with FakeTensorMode(allow_non_fake_inputs=True):
        augment = build().to("cuda")
        samples = torch.zeros(shape, dtype=dtype, device="cuda")
        labels = torch.zeros(len(samples), dtype=torch.int64, device="cuda")
        with NobodyWaits(pinned) as watch:
            result, targets = augment(samples, labels, epoch=0)
    assert result.is_cuda and targets.is_cuda
    return watch.copies


@driver_needed
@pytest.mark.parametrize("augmentation", IMAGES, ids=["const", "rand", "pixel", "cut"])
def test_augmenting_images_does_not_wait_for_the_gpu(augmentation, monkeypatch):
    def build():
        return ImageAugmentation(augmentation, CIFAR_MEAN, CIFAR_STD, CLASSES)

    assert on_a_gpu_that_is_not_there(build, (4, 3, 16, 16), torch.uint8, monkeypatch) == 1


@driver_needed
def test_augmenting_events_does_not_wait_for_the_gpu(monkeypatch):
    augment = EventAugmentation(EVENTS, 16, 8, CLASSES)
    copies = on_a_gpu_that_is_not_there(
        lambda: augment, (4, 3, 2, 16, 16), torch.int16, monkeypatch
    )
    assert copies == 4  # flips, matrices, squares, moves


def test_a_square_with_its_centre_anywhere_is_cut_out_of_every_image():
    augment = ImageAugmentation(AugmentationConfig(cutout=6), CIFAR_MEAN, CIFAR_STD, CLASSES)
    images = torch.full((400, 3, 16, 16), 255, dtype=torch.uint8)
    result, _ = augment(images, torch.arange(400) % CLASSES, epoch=0)
    empty = (result == 0).all(1)
    assert ((result == 0).any(1) == empty).all()  # in all channels
    height, width = empty.any(2).sum(1), empty.any(1).sum(1)
    assert (empty.sum((1, 2)) == height * width).all()  # a rectangle
    assert set(height.tolist()) == set(width.tolist()) == {3, 4, 5, 6}  # cut off at the border
    assert (height == 6).float().mean() == pytest.approx(11 / 16, abs=0.08)
    assert empty.any(0).all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("augment", "shape", "dtype"),
    [
        *(
            (ImageAugmentation(config, CIFAR_MEAN, CIFAR_STD, CLASSES), (4, 3, 16, 16), torch.uint8)
            for config in IMAGES
        ),
        (EventAugmentation(EVENTS, 16, 8, CLASSES), (4, 3, 2, 16, 16), torch.int16),
    ],
    ids=["const", "rand", "pixel", "cut", "events"],
)
def test_nobody_waits_for_a_real_gpu_either(augment, shape, dtype):
    augment.cuda()
    batch = torch.ones(shape, dtype=dtype).cuda(), torch.arange(4).cuda()
    augment(*batch, epoch=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(*batch, epoch=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
