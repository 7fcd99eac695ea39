"""Firing rates against a count by hand; what is silent, saturated or not finite gets named."""

import math

import pytest
import torch
from conftest import make_model
from torch import nn

from qkformer.neurons import IF, LIF, NEURONS, SFA, SpikingNeuron
from qkformer.training.distributed import World
from qkformer.training.metrics import FiringRates, by_stage, dead_layers, not_finite

ALONE = World()


class Pair(nn.Module):
    """Two layers of neurons behind each other, and one that does not run: [T, B, C]."""

    def __init__(self, first=None, second=None):
        super().__init__()
        self.first, self.second = first or IF(), second or LIF()
        self.unused = LIF()

    def forward(self, x):
        return self.second(3 * self.first(x))


def small(name="qkformer_4_384", **options):
    return make_model(name, embed_dim=32, num_heads=2, num_classes=5, **options)


def images(size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)


def measured(model, *batches):
    rates = FiringRates(model)
    for batch in batches:
        with torch.no_grad():
            rates.measure(model, batch)
    return rates.rates(ALONE)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


# ------------------------------------------------------------------------------------- the rates


def test_rates_are_spikes_per_neuron_and_time_step():
    # IF with threshold 1 and hard reset: 0.5 fires every other step, 1 always, 0.2 not within 4
    x = torch.tensor([0.5, 1.0, 0.2]).expand(4, 2, 3)
    rates = measured(Pair(), x)
    assert rates["first"] == pytest.approx((2 + 4 + 0) / 12)
    # 3 per spike: h = 3 / 2 >= 1, so that the LIF behind fires on every spike
    assert rates["second"] == pytest.approx(rates["first"])
    assert "unused" not in rates


def test_rates_are_means_over_batches():
    silent, full = torch.zeros(4, 2, 3), torch.ones(4, 2, 3)
    assert measured(Pair(), silent, full, full, full)["first"] == 0.75


@pytest.mark.parametrize("name", ["qkformer_4_384", "ms_qkformer_4_384", "maxformer_4_384"])
@pytest.mark.parametrize("neuron", NEURONS)
def test_every_neuron_of_a_model_is_counted_as_its_own_spikes_say(name, neuron):
    model = small(name, neuron=neuron)
    layers = {k: m for k, m in model.named_modules() if isinstance(m, SpikingNeuron)}
    spikes = {}
    handles = [
        layer.register_forward_hook(lambda _m, _i, out, key=key: spikes.__setitem__(key, out))
        for key, layer in layers.items()
    ]
    rates = measured(model, images())
    for handle in handles:
        handle.remove()
    assert rates.keys() == layers.keys() and len(layers) > 20
    for key, out in spikes.items():
        assert rates[key] == pytest.approx((out == 1).double().mean().item())
        assert out.unique().tolist() in ([0.0], [1.0], [0.0, 1.0])


def test_measuring_changes_no_output_and_leaves_nothing_behind():
    model, batch = small(), images()
    before, rates = model(batch), FiringRates(model)
    assert torch.equal(rates.measure(model, batch), before)
    assert hooks(model) == 0
    seen = dict(rates.calls)
    model(batch)
    assert rates.calls == seen
    with pytest.raises(ValueError, match="expected"):
        rates.measure(model, images(7))
    assert hooks(model) == 0


def test_integers_count_as_the_steps_that_they_unroll_to():
    x = torch.tensor([[[0.2, 1.4, 2.6, 9.0]]])  # 0, 1, 3 and 4 of 4 spikes
    for divide in (True, False):
        rates = FiringRates(layer := nn.Sequential(SFA(4, divide=divide)))
        rates.measure(layer, x)
        assert rates.rates(ALONE) == {"0": 0.5}


def test_rates_of_several_processes_count_every_batch_once():
    # the other process: 1.0 in 3 batches of the first layer, the second never ran
    others = iter(torch.tensor([[1.0, 0, 0], [3.0, 0, 0]]))

    class Two(World):
        def total(self, values):
            return values + next(others)

    rates = FiringRates(Pair())
    rates.sums["first"], rates.calls["first"] = torch.tensor(0.5), 1
    assert rates.rates(Two()) == {"first": 1.5 / 4}


# ------------------------------------------------------------------------------------ what is dead


def test_a_layer_that_never_fires_and_one_that_always_does_are_named():
    lines = dead_layers(measured(Pair(first=IF(v_threshold=1e9)), torch.ones(4, 2, 3)))
    assert lines == ["2 of 2 neuron layers silent (no spike): first, second"]
    lines = dead_layers(measured(Pair(), torch.full((4, 2, 3), 9.0)))
    assert lines == ["2 of 2 neuron layers saturated (spikes only): first, second"]
    lines = dead_layers(measured(Pair(second=LIF(v_threshold=1e9)), torch.ones(4, 2, 3)))
    assert lines == [
        "1 of 2 neuron layers silent (no spike): second",
        "1 of 2 neuron layers saturated (spikes only): first",
    ]
    assert dead_layers(measured(Pair(), torch.tensor([0.5, 1.0, 0.2]).expand(4, 2, 3))) == []


@pytest.mark.parametrize(("bias", "word"), [(-1e4, "silent"), (1e4, "saturated")])
def test_a_batchnorm_out_of_range_shows_in_the_layer_behind_it(bias, word):
    model = small()
    assert dead_layers(measured(model, images())) == []
    layer = model.get_submodule("stages.1.blocks.0.mlp.branch.fc1")
    (norm,) = (module for module in layer.modules() if isinstance(module, nn.BatchNorm2d))
    nn.init.constant_(norm.bias, bias)
    lines = dead_layers(measured(model, images()))
    assert any(word in line and "stages.1.blocks.0.mlp.branch.fc1.neuron" in line for line in lines)


def test_of_many_dead_layers_the_first_are_named():
    rates = dict.fromkeys("abcde", 0.0) | {"f": 0.5}
    (line,) = dead_layers(rates)
    assert line == "5 of 6 neuron layers silent (no spike): a, b, c and 2 more"


def test_one_spike_in_ten_batches_is_life():
    silent, one = torch.zeros(4, 2, 3), torch.zeros(4, 2, 3)
    one[3, 1, 2] = 1.0
    assert dead_layers(measured(Pair(), *[silent] * 9, one)) == []


def test_stages_have_the_mean_of_their_layers():
    rates = {
        "stages.0.embed.a": 0.1,
        "stages.0.blocks.0.b": 0.3,
        "stages.1.embed.a": 0.5,
        "head_neuron": 0.7,
    }
    expected = {"stages.0": pytest.approx(0.2), "stages.1": 0.5, "head_neuron": 0.7}
    assert by_stage(rates) == expected
    assert by_stage({}) == {}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("qkformer_4_384", ["stages.0", "stages.1", "stages.2"]),
        ("ms_qkformer_4_384", ["stages.0", "stages.1", "stages.2", "head_neuron"]),
    ],
)
def test_every_stage_of_a_model_has_a_rate(name, stages):
    rates = by_stage(measured(small(name), images()))
    assert list(rates) == stages
    assert all(0 < rate < 1 for rate in rates.values())


# ------------------------------------------------------------------------------ what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_parameters_buffers_and_gradients_out_of_range_are_named(value):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert not_finite(model) == []
    model[0].bias.grad = torch.zeros(2)
    assert not_finite(model) == []
    model[0].bias.grad[1] = value
    assert not_finite(model) == ["0.bias.grad"]
    with torch.no_grad():
        model[0].weight[1, 0] = value
    model[1].running_var[0] = value
    assert not_finite(model) == ["0.weight", "1.running_var", "0.bias.grad"]
