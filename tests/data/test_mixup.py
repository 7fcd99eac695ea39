"""Mixup and CutMix: samples and labels in the same shares, drawn from NumPy's random numbers."""

import numpy as np
import pytest
import timm.data
import torch
from timm.data.mixup import FastCollateMixup, mixup_target
from timm.loss import SoftTargetCrossEntropy

from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.mixup import Mixup

CLASSES = 7


def mixup(**changes):
    changes = {"mixup_alpha": 0.5, **changes}
    return Mixup(AugmentationConfig(**changes), CLASSES)


def batch(size=8, shape=(3, 6, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    # class b is sample b's alone, so that labels tell who was mixed with whom
    return torch.randn(size, *shape, generator=generator), torch.arange(size) % CLASSES


@pytest.mark.parametrize("shape", [(3, 6, 5), (4, 2, 6, 5)], ids=["images", "frames"])
@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_a_batch_is_mixed_with_itself_backwards(shape, alpha):
    shares = []
    for seed in range(10):
        samples, targets = batch(6, shape)
        before = samples.clone()
        np.random.seed(seed)
        mixed, soft = mixup(mixup_alpha=alpha)(samples, targets, epoch=0)
        share = soft[0, 0].item()
        torch.testing.assert_close(mixed, before * share + before.flip(0) * (1 - share))
        one_hot = torch.nn.functional.one_hot(targets, CLASSES).float()
        torch.testing.assert_close(soft, one_hot * share + one_hot.flip(0) * (1 - share))
        torch.testing.assert_close(soft.sum(1), torch.ones(6))
        assert soft.dtype == mixed.dtype == torch.float32
        shares.append(share)
    assert len(set(shares)) == 10 and all(0 <= share <= 1 for share in shares)


MIXTURES = {
    "mixup": dict(mixup_alpha=0.5, cutmix_alpha=0.0),
    "cutmix": dict(mixup_alpha=0.0, cutmix_alpha=1.0),
    "either": dict(mixup_alpha=0.5, cutmix_alpha=1.0, switch_prob=0.4),
}


@pytest.mark.parametrize("alphas", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("prob", [1.0, 0.5])
def test_mixtures_are_timms_to_the_bit(prob, alphas):
    """Of float samples as it mixes them in the loop, of images as in its collate function."""
    options = dict(**alphas, prob=prob, label_smoothing=0.0, num_classes=CLASSES)
    samples, labels = batch(6)
    images = (samples * 99 + 128).clamp(0, 255).byte()
    mixed = 0
    for seed in range(8):
        for ours, theirs in (
            (samples, lambda: timm.data.Mixup(**options)(samples.clone(), labels)),
            (
                images,
                lambda: FastCollateMixup(**options)(list(zip(images.numpy(), labels, strict=True))),
            ),
        ):
            np.random.seed(seed)
            expected, expected_targets = theirs()
            np.random.seed(seed)
            before = ours.clone()
            result, targets = mixup(mixup_prob=prob, **alphas)(ours, labels, epoch=0)
            assert torch.equal(ours, before)
            assert result.dtype == ours.dtype
            assert torch.equal(result, expected) and torch.equal(targets, expected_targets)
            mixed += targets.max().item() < 1
    assert mixed > 12 if prob == 1 else 0 < mixed < 13


def test_a_rectangle_is_cut_out_of_all_frames_alike():
    frames, labels = batch(6, (4, 2, 16, 16))
    np.random.seed(3)
    mixed, targets = mixup(mixup_alpha=0.0, cutmix_alpha=1.0)(frames, labels, epoch=0)
    foreign = mixed == frames.flip(0)
    assert foreign.logical_or(mixed == frames).all()
    assert (foreign == foreign[:1, :1, :1]).all()
    assert 1 - foreign.float().mean() == pytest.approx(targets[0, 0].item()) and foreign.any()


def test_without_mixup_labels_stay_and_nothing_is_drawn():
    samples, labels = batch()
    np.random.seed(0)
    before = np.random.get_state()[1:3]
    result, targets = mixup(mixup_alpha=0.0)(samples, labels, epoch=0)
    assert result is samples and targets is labels
    assert str(np.random.get_state()[1:3]) == str(before)


def test_shares_are_beta_distributed():
    mix, alpha = mixup(mixup_alpha=0.5), 0.5
    np.random.seed(0)
    shares = [mix(*batch(2, (1,)), epoch=0)[1][0, 0].item() for _ in range(1000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_the_same_seed_gives_the_same_mixture():
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        results.append(torch.cat([mixup()(*batch(), epoch=0)[0] for _ in range(3)]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_batches_are_mixed_with_their_probability(prob):
    mix, mixed = mixup(mixup_prob=prob), 0
    np.random.seed(0)
    for _ in range(300):
        samples, targets = batch(4, (2,))
        _, soft = mix(samples, targets, epoch=0)
        mixed += soft.max().item() < 1
    assert mixed / 300 == pytest.approx(prob, abs=0.06)


@pytest.mark.parametrize(
    ("off_epoch", "epoch", "mixes"),
    [(0, 0, True), (0, 500, True), (75, 74, True), (75, 75, False), (75, 90, False)],
)
def test_mixing_ends_with_its_last_epoch(off_epoch, epoch, mixes):
    samples, targets = batch()
    before = samples.clone()
    np.random.seed(0)
    mixed, soft = mixup(mixup_off_epoch=off_epoch)(samples, targets, epoch)
    one_hot = torch.nn.functional.one_hot(targets, CLASSES).float()
    assert torch.equal(mixed, before) != mixes
    assert torch.equal(soft, one_hot) != mixes


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_middle_one_of_an_odd_number_stays_as_it_is(size):
    """Of a batch of which samples could not be read."""
    samples, targets = batch(size)
    images, middle = (samples * 40 + 128).byte(), size // 2
    for before in (samples, images):
        np.random.seed(0)
        mixed, soft = mixup()(before, targets, epoch=0)
        torch.testing.assert_close(mixed[middle], before[middle])
        one_hot = torch.nn.functional.one_hot(targets, CLASSES).float()
        torch.testing.assert_close(soft[middle], one_hot[middle])
        assert size == 1 or not torch.equal(mixed[0], before[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_smoothing_in_the_loss_is_timms_smoothing_of_mixed_labels(smoothing):
    torch.set_default_dtype(torch.float64)  # that of timm's targets
    try:
        logits, targets = torch.randn(8, CLASSES), torch.arange(8) % CLASSES
        for share in (0.0, 0.3, 1.0):
            timms = SoftTargetCrossEntropy()(
                logits, mixup_target(targets, CLASSES, share, smoothing)
            )
            loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
            ours = loss(logits, mixup_target(targets, CLASSES, share))
            torch.testing.assert_close(ours, timms, rtol=0, atol=1e-12)
            if share == 1:  # what mixing leaves alone costs what it costs without mixup
                torch.testing.assert_close(ours, loss(logits, targets), rtol=0, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.gpu
def test_batches_on_the_gpu_are_mixed_there():
    samples, targets = batch(7)
    np.random.seed(0)
    mixed, soft = mixup()(samples.cuda(), targets.cuda(), epoch=0)
    np.random.seed(0)
    expected, expected_soft = mixup()(samples, targets, epoch=0)
    torch.testing.assert_close(mixed.cpu(), expected)
    torch.testing.assert_close(soft.cpu(), expected_soft)
