"""Temporal efficient training: hand-worked. tests/models/test_golden.py has the published one."""

import torch
import torch.nn.functional as F

from qkformer.loss import tet_loss


def test_tet_is_the_mean_loss_of_the_steps_and_a_pull_to_one_level():
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]])  # [T, B, classes]
    target = torch.tensor([0])
    cross_entropy = (F.cross_entropy(logits[0], target) + F.cross_entropy(logits[1], target)) / 2
    pull = ((2 - 0.5) ** 2 + 3 * 0.5**2) / 4
    got = tet_loss(logits, target, weight=0.1, level=0.5)
    torch.testing.assert_close(got, 0.9 * cross_entropy + 0.1 * pull)
