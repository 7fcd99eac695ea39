"""Spiking networks approach what they were made of; test_golden.py has the published ones."""

import pytest
import torch
from conftest import make_model
from families import FAMILIES
from torch import nn

import qkformer
from qkformer.neurons import IF


def distance(spiking, model, x) -> float:
    with torch.no_grad():
        return ((spiking(x) - model(x)).norm() / model(x).norm()).item()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qcfs_resnet18", "mst_swin_t"])
def test_more_steps_bring_spikes_nearer_to_their_activations(name):
    model = make_model(name, **FAMILIES[name])
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few, many = (qkformer.convert(model, T=T, method="qcfs") for T in (2, 128))
    rates = []
    for module in many.modules():
        if isinstance(module, IF):
            module.register_forward_hook(lambda _m, _i, spikes: rates.append(spikes.mean().item()))
    assert distance(many, model, x) < 0.5 * distance(few, model, x)
    assert len(rates) >= 5 and max(rates) <= 1 and sum(rates) / len(rates) > 0.1
    torch.testing.assert_close(many(x)[:1], many(x[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Max", 0.9])
def test_rate_coding_approaches_any_network_of_relus(mode):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()
    x = torch.rand(4, 3, 8, 8)
    options = dict(method="ann2snn", calibration=[x], mode=mode)
    few, many = (qkformer.convert(model, T=T, **options) for T in (2, 256))
    assert distance(many, model, x) < min(0.1, 0.5 * distance(few, model, x))
    assert many(x, per_step=True).shape == (256, 4, 5)
    assert torch.equal(many(x), many(x))  # no state is left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("qkformer_4_384", dict(method="qcfs", T=4), "QCFS activations"),
        ("qcfs_resnet18", dict(method="qcfs"), "T >= 1"),
        ("qcfs_resnet18", dict(method="sfa"), "as many steps as levels"),
        ("qcfs_resnet18", dict(method="ann2snn", T=4, calibration=[]), "ReLUs"),
    ],
)
def test_what_cannot_be_converted_is_named(name, options, message):
    model = qkformer.create_model(name, **FAMILIES[name])
    with pytest.raises(ValueError, match=message):
        qkformer.convert(model, **options)
