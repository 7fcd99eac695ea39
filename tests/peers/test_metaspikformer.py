"""Meta-SpikeFormer and E-SpikeFormer: what is theirs alone."""

import pytest
import torch
from conftest import make_model
from families import FAMILIES

import qkformer
from qkformer.neurons import SFA
from qkformer.peers.meta_layers import RepConv

E_SPIKEFORMERS = ["espikeformer_t", "espikeformer_12_512"]


def made(name, seed=0, shape=(2, 3, 32, 32), **options):
    model = make_model(name, seed, **FAMILIES[name], **options)
    generator = torch.Generator().manual_seed(seed)
    return model, torch.randn(shape, generator=generator, dtype=torch.float64)


def outputs(model, x):
    """Logits, and the outputs of every neuron, in order."""
    seen = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
        for module in model.modules()
        if isinstance(module, SFA)
    ]
    with torch.no_grad():
        logits = model(x)
    for hook in hooks:
        hook.remove()
    return logits, seen


@pytest.mark.parametrize(
    ("seed", "levels", "shape"),
    [(0, 4, (2, 3, 32, 32)), (0, 3, (1, 3, 64, 48)), (1, 8, (3, 3, 48, 80))],
)
@pytest.mark.parametrize("name", E_SPIKEFORMERS)
def test_binary_steps_compute_what_integers_do(name, seed, levels, shape):
    model, x = made(name, seed, shape, levels=levels)
    spiking = qkformer.convert(model, method="sfa")
    logits, integers = outputs(model, x)
    got, spikes = outputs(spiking, x)
    torch.testing.assert_close(got, logits, rtol=1e-10, atol=1e-10)
    assert len(spikes) == len(integers) > 10
    assert sum(steps.mean() > 0.1 for steps in spikes) > 8
    for n, steps in zip(integers[:-1], spikes[:-1], strict=True):
        assert set(steps.unique().tolist()) <= {0.0, 1.0}
        assert steps.shape == (levels, *n.shape[1:])
        torch.testing.assert_close(steps.mean(0, keepdim=True), n)


def test_an_unrolled_network_has_as_many_steps_as_levels():
    model, x = made("espikeformer_t")
    with pytest.raises(ValueError, match="as many steps as levels"):
        qkformer.convert(model, T=8, method="sfa")
    spiking = qkformer.convert(model, T=4, method="sfa")
    with pytest.raises(ValueError, match="unrolled into 4 steps, got 2"):
        spiking(x.unsqueeze(1).expand(-1, 2, -1, -1, -1))
    with pytest.raises(ValueError, match="method must be one of"):
        qkformer.convert(model, method="magic")


@pytest.mark.parametrize(
    ("rounding", "integers", "slopes"),
    [("even", [0, 0, 0, 2, 2, 4, 4], [0, 1, 1, 1, 1, 1, 0]),
     ("up", [0, 0, 1, 2, 3, 4, 4], [0, 0, 1, 1, 1, 0, 0])],
)  # fmt: skip
def test_sfa_rounds_halves_and_passes_gradients_as_published(rounding, integers, slopes):
    x = torch.tensor([-1.0, 0.0, 0.5, 1.5, 2.5, 4.0, 4.5], requires_grad=True)
    y = SFA(rounding=rounding)(x)
    y.sum().backward()
    assert (y * 4).tolist() == integers
    assert (x.grad * 4).tolist() == slopes
    assert (SFA(rounding=rounding, divide=False)(x)).tolist() == integers


@pytest.mark.parametrize("name", ["metaspikformer_8_384", "espikeformer_t", "espikeformer_12_512"])
def test_two_heads_are_averaged_but_in_distilled_training(name):
    model, x = made(name, distilled=True)
    mean = model(x)
    model.set_distilled_training()
    assert torch.equal(model(x), mean)
    model.eval().train()
    for module in model.modules():  # statistics as in evaluation
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    first, second = model(x)
    assert not torch.allclose(first, second)
    torch.testing.assert_close((first + second) / 2, mean)
    model.reset_classifier(7)
    assert [logits.shape for logits in model(x)] == [(2, 7), (2, 7)]


def test_the_border_of_rep_conv_is_what_batchnorm_makes_of_zero():
    torch.manual_seed(0)
    layer = RepConv(5).double().eval()
    for module in layer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.bias.data.normal_()
    x = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64)
    zeros = torch.nn.functional.pad(x, (1, 1, 1, 1))  # then no padding is needed behind
    inside = layer.depthwise(layer.first(zeros).flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(layer(x), layer.last(inside))
