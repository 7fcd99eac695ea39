"""Digits: always the same split, whatever the seed; images as uint8, at their own size."""

import sys

import pytest
import torch

from qkformer.data.digits import digits
from qkformer.data.image_transforms import test_transform as still_transform
from qkformer.data.samples import Samples, held_out
from qkformer.data.source import DataConfig, DataError


def config(**changes):
    return DataConfig(**{"name": "digits", "image_size": 16, "batch_size": 64, **changes})


def test_digits_are_split_into_disjoint_balanced_parts():
    data = digits(config())
    (train, train_labels), (test, test_labels) = data.train.tensors, data.test.tensors
    assert (len(train), len(test)) == (1437, 360)
    assert train.dtype == test.dtype == torch.uint8
    assert train.shape[1:] == test.shape[1:] == (data.in_chans, 8, 8)
    assert test_labels.bincount(minlength=data.num_classes).min() >= 34
    seen = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in seen for image in test)
    assert len(train_labels) == 1437


def test_images_use_the_whole_range():
    images = digits(config()).train.tensors[0]
    assert images.min() == 0
    assert images.max() == 255
    assert len(images.unique()) == 17


def test_the_split_does_not_depend_on_global_random_numbers():
    torch.manual_seed(1)
    one = digits(config())
    torch.manual_seed(2)
    other = digits(config())
    assert torch.equal(one.test.tensors[0], other.test.tensors[0])


@pytest.mark.parametrize("size", [8, 12, 16, 32])
def test_a_transform_brings_them_to_the_configured_size(size):
    samples = Samples(
        digits(config()).train, still_transform(config(image_size=size, crop_pct=1.0))
    )
    image, label = samples[5, 0]
    assert image.shape == (1, size, size)
    assert image.dtype == torch.uint8
    assert label == samples.source.tensors[1][5]
    if size == 8:
        assert torch.equal(image, samples.source.tensors[0][5])


def test_some_can_be_held_out():
    kept, held = held_out(digits(config()).train, 0.1)
    assert (len(kept), len(held)) == (1295, 142)


def test_mean_and_std_are_those_of_the_training_images():
    data = digits(config())
    scaled = data.train.tensors[0].double() / 255
    assert data.mean == pytest.approx((scaled.mean().item(),), rel=1e-5)
    assert data.std == pytest.approx((scaled.std().item(),), rel=1e-5)


def test_a_missing_scikit_learn_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install qkformer\[demo\]"):
        digits(config())


def test_a_root_that_digits_would_ignore_is_refused():
    with pytest.raises(DataError, match=r"data\.root"):
        digits(config(root="/data"))


@pytest.mark.parametrize(
    "change", [{"image_size": 0}, {"batch_size": 0}, {"test_batch_size": 0}, {"workers": -1}]
)
def test_impossible_values_name_their_key(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        config(**change)
