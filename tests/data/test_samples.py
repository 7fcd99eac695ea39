"""Samples: what a key yields depends on the key alone; damage has a name, bugs stay bugs."""

import gc
import os
import random
import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from image_files import write_imagenet
from torch.utils.data import DataLoader, Dataset, TensorDataset

from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.image_transforms import training_transform
from qkformer.data.imagenet import imagenet
from qkformer.data.samples import Damaged, LabelledPaths, Samples, held_out, seeded
from qkformer.data.source import DataConfig, DataError


def global_state():
    return random.getstate(), np.random.get_state()[1:], torch.get_rng_state()


def same_state(one, other):
    return (
        one[0] == other[0]
        and all(np.array_equal(a, b) for a, b in zip(one[1], other[1], strict=True))
        and torch.equal(one[2], other[2])
    )


def disturb(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second number for later


def draw(_=None):
    """From every kind of global random numbers."""
    return torch.tensor(
        [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.standard_normal(),
            torch.rand(()).item(),
            torch.randn(()).item(),
        ]
    )


class Numbers(Dataset):
    targets = (0,) * 12

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return index, 0


@pytest.fixture
def images(tmp_path):
    config = DataConfig(name="imagenet", image_size=32, batch_size=4, root=str(tmp_path))
    write_imagenet(tmp_path, classes=2, train=4, val=1)
    augmentation = AugmentationConfig(
        crop_scale=(0.1, 1.0), hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1"
    )
    source = imagenet(config)
    return Samples(source.train, training_transform(augmentation, config, source.mean))


# ---- random numbers


def test_a_key_yields_the_same_whatever_was_drawn_before(images):
    keys = [(index, seed) for index in range(8) for seed in (0, 5, 2**32 - 1)]
    disturb(0)
    expected = {key: images[key][0] for key in keys}
    disturb(1)
    for key in reversed(keys):
        draw()
        assert torch.equal(images[key][0], expected[key])
    assert len({image.numpy().tobytes() for image in expected.values()}) == len(keys)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_key_yields_the_same_in_any_process(images, workers):
    keys = [(index, 100 + index) for index in range(8)]
    loader = DataLoader(images, batch_size=None, sampler=keys, num_workers=workers)
    for key, (image, label) in zip(keys, loader, strict=True):
        assert torch.equal(image, images[key][0])
        assert label == images[key][1]


def test_global_random_numbers_go_on_as_if_nothing_had_been_drawn():
    samples = Samples(Numbers(), draw)
    disturb(4)
    expected = draw(), draw()
    disturb(4)
    first = draw()
    for key in ((0, 7), (1, 8)):
        samples[key]
    assert torch.equal(first, expected[0])
    before = global_state()
    samples[0, 7]
    assert same_state(global_state(), before)
    assert torch.equal(draw(), expected[1])


def test_in_loading_processes_random_numbers_are_not_put_back():
    """Nothing else draws there, and it takes several times as long as all the rest."""

    class Drawn(Numbers):
        def __getitem__(self, index):
            return draw(), 0  # outside of the transform: what the sample before left

    samples = Samples(Drawn(), lambda sample: torch.stack([sample, draw()]))
    loader = DataLoader(samples, batch_size=None, sampler=[(0, 3), (1, 4)], num_workers=1)
    for (_, transformed), (after, _) in pairwise(sample for sample, _ in loader):
        with seeded(3):
            assert torch.equal(transformed, draw())
            assert torch.equal(after, draw())


def test_global_random_numbers_survive_an_error():
    disturb(0)
    before = global_state()
    with pytest.raises(ZeroDivisionError), seeded(1):
        draw()
        raise ZeroDivisionError
    assert same_state(global_state(), before)


def test_the_three_kinds_of_random_numbers_are_not_the_same_bits():
    """Seeded alike, NumPy's and PyTorch's would be: NumPy's low bits are PyTorch's high ones."""
    numbers = []
    for seed in range(300):
        with seeded(seed):
            numbers.append([random.random(), np.random.rand(), torch.rand(()).item()])
    bits = np.array(numbers)[:, :, None] * 2.0 ** np.arange(9) % 1  # from the first bit, the second
    correlation = np.corrcoef(bits.reshape(300, 27).T) - np.eye(27)
    across = correlation.reshape(3, 9, 3, 9)[[0, 0, 1], :, [1, 2, 2], :]
    assert np.abs(across).max() < 0.25


# ---- what is read


def test_indices_choose_samples():
    samples = Samples(Numbers(), indices=[7, 3])
    assert len(samples) == 2
    assert samples[0, 0] == (7, 0)
    assert samples[1, 0] == (3, 0)


def test_paths_are_a_list_that_loading_processes_do_not_copy():
    samples = [("a/b.png", 0), ("ä/\udcff/long name.JPEG", 70_000), ("a", 3)]
    held = LabelledPaths(samples)
    assert list(held) == samples and len(held) == 3 and held[-1] == samples[-1]
    assert [type(value) for value in held[1]] == [str, int]
    assert not any(gc.is_tracked(value) for value in gc.get_referents(vars(held)))
    assert list(LabelledPaths([])) == []


def test_labels_are_python_integers():
    source = TensorDataset(torch.zeros(2, 1), torch.tensor([4, 2]))
    label = Samples(source)[1, 0][1]
    assert label == 2 and type(label) is int


@pytest.mark.parametrize("kind", ["JPEG", "png"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "no image", "missing", "folder"])
def test_a_damaged_image_is_named(images, kind, damage):
    index, path = next(
        (i, path) for i, (path, _) in enumerate(images.source.samples) if path.endswith(kind)
    )
    with open(path, "r+b") as file:
        raw = file.read()
        file.seek(0)
        file.truncate()
        left = {"truncated": raw[: len(raw) // 2], "no image": b"not found" * 99}
        file.write(left.get(damage, b""))
    if damage in ("missing", "folder"):
        os.remove(path)
    if damage == "folder":
        os.mkdir(path)
    result = images[index, 0]
    assert isinstance(result, Damaged)
    assert result.sample == path
    assert result.reason
    assert str(result).startswith(f"{path}: ") and "\n" not in str(result)
    other = (index + 1) % len(images)
    assert images[other, 0][0].shape == (3, 32, 32)


def test_overwritten_images_never_raise(images):
    """Any byte may be wrong: the image is read all the same, or it is damaged."""
    rng = np.random.default_rng(0)
    outcomes = set()
    for index in (0, 3):
        path = images.source.samples[index][0]
        raw = np.fromfile(path, np.uint8)
        for trial in range(150):
            broken = raw.copy()
            end = 100 if trial % 2 else len(raw)
            places = rng.integers(0, end, rng.integers(1, 10))
            broken[places] = rng.integers(0, 256, len(places))
            broken.tofile(path)
            outcomes.add(type(images[index, 0]))
    assert outcomes == {tuple, Damaged}


@pytest.mark.parametrize(
    "error", [zlib.error("invalid block"), EOFError(), KeyError("frames"), OSError("a\nb")]
)
def test_damage_of_a_source_without_file_names_has_the_samples_number(error):
    class Source(Numbers):
        def __getitem__(self, index):
            raise error

    result = Samples(Source(), indices=[5])[0, 0]
    assert result.sample == "sample 5"
    assert result.reason and "\n" not in result.reason


@pytest.mark.parametrize("error", [ValueError, OSError, KeyError])
def test_errors_of_the_transform_are_not_taken_for_damage(error):
    def broken(sample):
        raise error("a bug")

    with pytest.raises(error, match="a bug"):
        Samples(Numbers(), broken)[0, 0]


@pytest.mark.parametrize("error", [IndexError, TypeError, AttributeError, DataError])
def test_errors_that_damage_does_not_explain_are_raised(error):
    class Source(Numbers):
        def __getitem__(self, index):
            raise error("a bug")

    with pytest.raises(error, match="a bug"):
        Samples(Source())[0, 0]


# ---- held out


def labelled(*counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(0).permutation(labels)
    return TensorDataset(torch.zeros(len(labels)), torch.from_numpy(labels))


def test_every_class_holds_out_its_share():
    source = labelled(100, 40, 60, 10)
    kept, held = held_out(source, 0.1)
    labels = source.tensors[1]
    assert labels[held].bincount().tolist() == [10, 4, 6, 1]
    assert labels[kept].bincount().tolist() == [90, 36, 54, 9]
    assert sorted([*kept, *held]) == list(range(210))
    assert (np.diff(held) > 0).all() and (np.diff(kept) > 0).all()


def test_the_samples_held_out_are_always_the_same_and_no_pattern():
    source = labelled(50, 50)
    kept, held = held_out(source, 0.2)
    disturb(3)
    for before, after in zip((kept, held), held_out(source, 0.2), strict=True):
        assert np.array_equal(before, after)
    labels = source.tensors[1]
    assert labels[held].tolist() != sorted(labels[held].tolist())
    places = np.flatnonzero(labels == 0).tolist()
    assert {places.index(i) for i in held if i in places} != set(range(10))


def test_labels_may_be_a_list():
    class Folder(Numbers):
        targets = ("0", "1") * 6

    kept, held = held_out(Folder(), 0.5)
    assert len(kept) == len(held) == 6


def test_nothing_held_out_trains_on_everything():
    kept, held = held_out(labelled(5, 5), 0.0)
    assert kept is None and not len(held)


def test_samples_without_labels_known_beforehand_cannot_be_divided():
    class Unlabelled(Dataset):
        pass

    message = r"^data\.val_fraction: needs the class indices .* `targets` of their Unlabelled$"
    with pytest.raises(DataError, match=message):
        held_out(Unlabelled(), 0.1)


@pytest.mark.parametrize(
    ("counts", "fraction", "reason"),
    [
        ((3, 3), 0.1, "none held out"),
        ((10, 1), 0.9, "nothing of class 1"),
        ((2, 20), 0.8, "nothing of class 0"),
    ],
)
def test_a_share_that_leaves_nothing_is_refused(counts, fraction, reason):
    with pytest.raises(DataError, match=rf"^data\.val_fraction: {fraction} of .*{reason}"):
        held_out(labelled(*counts), fraction)


def test_a_large_data_set_is_divided_in_no_time():
    """ImageNet has 1.28 million samples in 1000 classes; by class and sample, that is a minute."""
    labels = torch.arange(100_000) % 1000
    kept, held = held_out(TensorDataset(labels, labels), 0.01)
    assert (len(kept), len(held)) == (99_000, 1000)
