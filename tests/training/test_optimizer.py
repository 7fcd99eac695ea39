"""AdamW: what decays and what does not."""

import math

import pytest
import torch
from torch import nn

from qkformer.training.optimizer import OptimizerConfig, create_optimizer


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.time_constants = nn.Parameter(torch.zeros(2, 2))

    def no_weight_decay(self):
        return {"time_constants"}


def test_only_weights_decay():
    model = Model()
    optimizer = create_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "conv.weight": 0.5,
        "conv.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "time_constants": 0.0,
    }


def test_learning_rate_and_betas_reach_every_group():
    optimizer = create_optimizer(Model(), OptimizerConfig(lr=0.1, betas=(0.5, 0.6)))
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"]) == (0.1, (0.5, 0.6))


@pytest.mark.parametrize(
    "change",
    [{"lr": 0}, {"lr": -1}, {"lr": math.nan}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}],
    ids=str,
)
def test_impossible_values_name_their_key(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        OptimizerConfig(**{"lr": 0.1, **change})
