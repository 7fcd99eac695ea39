"""Losses: TET hand-worked (tests/models/test_golden.py has the published), BCE beside timm's."""

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy

from qkformer.loss import SmoothBinaryCrossEntropy, tet_loss


def test_tet_is_the_mean_loss_of_the_steps_and_a_pull_to_one_level():
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]])  # [T, B, classes]
    target = torch.tensor([0])
    cross_entropy = (F.cross_entropy(logits[0], target) + F.cross_entropy(logits[1], target)) / 2
    pull = ((2 - 0.5) ** 2 + 3 * 0.5**2) / 4
    got = tet_loss(logits, target, weight=0.1, level=0.5)
    torch.testing.assert_close(got, 0.9 * cross_entropy + 0.1 * pull)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_timms_of_labels_and_of_labels_that_it_smooths_and_mixes(smoothing):
    logits, labels = torch.randn(8, 5), torch.arange(8) % 5
    loss = SmoothBinaryCrossEntropy(smoothing)
    assert loss(logits, labels).equal(BinaryCrossEntropy(smoothing)(logits, labels))
    for share in (0.3, 1.0):
        expected = BinaryCrossEntropy(0.0)(logits, mixup_target(labels, 5, share, smoothing))
        torch.testing.assert_close(loss(logits, mixup_target(labels, 5, share)), expected)
