"""Optimizers: what decays and what does not; how a learner goes on from another."""

import math

import pytest
import torch
from families import FAMILIES
from same import assert_same
from timm.optim import create_optimizer_v2
from torch import nn

import qkformer
from qkformer.checkpoint.io import CheckpointError
from qkformer.data.source import DataConfig
from qkformer.training.config import Config, ModelConfig
from qkformer.training.distributed import World
from qkformer.training.learner import Learner
from qkformer.training.optimizer import OptimizerConfig, create_optimizer
from qkformer.training.schedule import ScheduleConfig


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.time_constants = nn.Parameter(torch.zeros(2, 2))

    def no_weight_decay(self):
        return {"time_constants"}


def decays(model, weight_decay=0.5):
    """Name of every parameter -> its weight decay."""
    optimizer = create_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=weight_decay))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    return {name: decay[id(p)] for name, p in model.named_parameters()}


def test_only_weights_decay():
    assert decays(Model()) == {
        "conv.weight": 0.5,
        "conv.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "time_constants": 0.0,
    }


@pytest.mark.parametrize(
    "name", ["qkformer_4_384", "ms_qkformer_2_256", "maxformer_4_384", "spikformer_2_256"]
)
def test_of_a_model_with_learned_time_constants_matrices_and_kernels_decay(name):
    with torch.device("meta"):
        model = qkformer.create_model(name, neuron="plif", num_classes=10)
    dimensions = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert {0, 1, 2, 4} <= set(dimensions.values())  # time constants, BatchNorm, head, convolutions
    assert decays(model) == {
        name: 0.5 if dimension > 1 else 0.0 for name, dimension in dimensions.items()
    }


def test_every_parameter_is_trained_once():
    model = qkformer.create_model("qkformer_2_256", neuron="plif")
    groups = create_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5)).param_groups
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(trained) == sorted(id(parameter) for parameter in model.parameters())


def test_weights_decay_by_their_share_of_the_learning_rate_beside_the_gradient():
    model = Model()
    optimizer = create_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.1 * 0.5 if name == "conv.weight" else 1
        torch.testing.assert_close(parameter.detach(), before[name] * kept)


def test_learning_rate_and_betas_reach_every_group():
    optimizer = create_optimizer(Model(), OptimizerConfig(lr=0.1, betas=(0.5, 0.6)))
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"]) == (0.1, (0.5, 0.6))


@pytest.mark.parametrize("name", ["lamb", "sgd", "momentum", "adam"])
def test_any_optimizer_steps_as_timm_would_have_it(name):
    ours, theirs = learner(name=name, weight_decay=0.1), learner()
    optimizer = create_optimizer_v2(theirs.model, name, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        step(ours)
        theirs.backward(torch.eye(4), torch.arange(4) % 3, exchange=True)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(ours.model.state_dict(), theirs.model.state_dict())


def test_a_layers_rate_is_a_share_of_that_of_the_layer_behind_it():
    name = "metaspikformer_8_384"
    model = qkformer.create_model(name, num_classes=3, **FAMILIES[name])
    config = OptimizerConfig(lr=0.1, layer_decay=0.5, weight_decay=0.25)
    optimizer = create_optimizer(model, config)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    scales = {name: groups[id(p)]["lr_scale"] for name, p in model.named_parameters()}
    assert scales["head.weight"] == 1
    inner = [
        next(scales[name] for name in scales if name.startswith(f"stages.{i}.embed"))
        for i in range(5)
    ]
    assert inner == sorted(inner) and 0 < inner[0] < inner[1] < inner[-1] < 1
    assert all(math.log2(scale).is_integer() for scale in scales.values())
    for parameter in model.parameters():
        assert groups[id(parameter)]["weight_decay"] == (0.25 if parameter.ndim > 1 else 0)


def test_a_step_has_every_layers_own_rate():
    one = learner(lr=0.5, weight_decay=0.1)
    one.optimizer.param_groups[0]["lr_scale"] = 0.25
    step(one)
    assert [group["lr"] for group in one.optimizer.param_groups] == [0.1 * 0.25, 0.1]


@pytest.mark.parametrize(
    ("batch", "processes", "accumulation", "peak"),
    [(32, 8, 2, 1.2e-3), (24, 8, 3, 1.35e-3), (32, 1, 8, 6e-4), (1, 1, 1, 6e-4 / 256)],
)
def test_the_peak_grows_with_the_samples_of_a_step_if_asked_to(
    batch, processes, accumulation, peak
):
    samples = batch * processes * accumulation
    assert OptimizerConfig(lr=6e-4, lr_per_batch=256).peak_lr(samples) == pytest.approx(peak)
    assert OptimizerConfig(lr=6e-4).peak_lr(samples) == 6e-4


@pytest.mark.parametrize(
    "change",
    [
        *({"lr": value} for value in (0, -1, math.nan, math.inf)),
        *({"lr_per_batch": value} for value in (0, -256)),
        *({"weight_decay": value} for value in (-0.1, math.nan, math.inf)),
        *({"betas": value} for value in ((0.9, 1.0), (-0.1, 0.9), (math.nan, 0.9))),
        *({"accumulation_steps": value} for value in (0, -1)),
        *({"clip_grad_norm": value} for value in (0, -1, math.nan, math.inf)),
        *({"layer_decay": value} for value in (0, 1, math.nan)),
        *({"ema_decay": value} for value in (0, 1, -0.5, math.nan)),
    ],
    ids=str,
)
def test_impossible_values_name_their_key(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))}: must"):
        OptimizerConfig(**{"lr": 0.1, **change})


# ------------------------------------------------------------------------------------ going on


def learner(lr=0.1, **optimizer):
    config = Config(
        epochs=1,
        model=ModelConfig("qkformer_4_384"),
        data=DataConfig(name="digits", image_size=2, batch_size=4),
        optimizer=OptimizerConfig(lr=lr, **optimizer),
        schedule=ScheduleConfig("one_cycle"),
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    return Learner(model, config, torch.device("cpu"), World())


def step(one):
    one.step([(torch.eye(4), torch.arange(4) % 3)], 0.1)


def test_what_is_configured_wins_over_what_a_checkpoint_was_trained_with():
    old = learner(weight_decay=0.5, betas=(0.9, 0.999))
    step(old)
    new = learner(weight_decay=0.25, betas=(0.5, 0.75))
    new.load_state_dict(old.state_dict())
    assert [group["weight_decay"] for group in new.optimizer.param_groups] == [0.0, 0.25]
    assert all(group["betas"] == (0.5, 0.75) for group in new.optimizer.param_groups)
    pairs = zip(old.optimizer.state.values(), new.optimizer.state.values(), strict=True)
    for one, other in pairs:  # but the moments are the checkpoint's
        assert one["exp_avg"].any() and torch.equal(one["exp_avg"], other["exp_avg"])
        assert one["exp_avg"].data_ptr() != other["exp_avg"].data_ptr()


@pytest.mark.parametrize(  # of the last three, moments are numbers and None as well
    "name", ["adamw", "adam", "lamb", "sgd", "momentum", "rmsproptf", "adamp", "laprop", "mars"]
)
def test_what_goes_on_steps_as_what_was_never_stopped(name):
    whole, first, second = (learner(name=name, weight_decay=0.1) for _ in range(3))
    for each in (whole, first):
        step(each)
        step(each)
    state = first.state_dict()
    second.load_state_dict(state)
    step(first)  # shares nothing with the one that took over
    step(whole)
    step(second)
    assert_same(second.state_dict(), whole.state_dict())


def test_a_run_that_goes_on_on_another_device_is_fused_as_that_device_allows():
    """As from a CPU to a GPU with fp16, whose scaler hands the fused step its scale."""
    old = learner()
    step(old)
    new = learner(args={"fused": True})
    new.scaler = torch.amp.GradScaler("cpu")
    new.load_state_dict(old.state_dict())
    assert all(group["fused"] for group in new.optimizer.param_groups)
    before = new.model[1].weight.detach().clone()
    step(new)
    assert not torch.equal(before, new.model[1].weight)


def test_moments_of_another_model_are_refused():
    state = learner().state_dict()
    state["optimizer"]["param_groups"].pop()
    with pytest.raises(CheckpointError, match="does not fit the configured model"):
        learner().load_state_dict(state)
