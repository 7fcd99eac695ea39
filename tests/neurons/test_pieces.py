"""Sequences too long for one piece on the CPU, in all memory formats: as the reference."""

import pytest
import torch

from qkformer.neurons import IF, LIF, PLIF, reference, sequence

N = 150_001  # elements of a time step


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """Several pieces, and a last one of another length, on any number of threads."""
    monkeypatch.setattr(sequence, "GRAIN_SIZE", 20_000 // torch.get_num_threads())


def layouts() -> dict[str, torch.Tensor]:
    x = 1.5 * torch.randn(3, N, generator=torch.Generator().manual_seed(0)) + 0.3
    images = x[:, : 8 * 24 * 25 * 31].reshape(3, 8, 24, 25, 31)
    channels_last = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return {
        "flat": x,
        "channels_last": channels_last.unflatten(0, (3, 8)),
        "repeated": images[:1].expand(5, -1, -1, -1, -1),
        "strided": images[:, ::2, :, 1:],
        "transposed": images.transpose(1, 2),
        "empty": images[:, :0],
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("neuron", [LIF(), LIF(tau=3.0, v_reset=0.1), IF(), PLIF(init_tau=1.5)])
def test_pieces_add_up_to_the_reference(neuron, layout):
    x = layouts()[layout].requires_grad_()
    spikes = neuron(x)
    expected = reference.spike_sequence(
        x, reciprocal_tau=neuron.reciprocal_tau, v_reset=neuron.v_reset
    )
    assert torch.equal(spikes, expected)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    wanted = [x, *neuron.parameters()]
    for got, right in zip(
        torch.autograd.grad(spikes, wanted, grad),
        torch.autograd.grad(expected, wanted, grad),
        strict=True,
    ):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def test_channels_last_stays_channels_last():
    x = layouts()["channels_last"].requires_grad_()
    spikes = LIF()(x)
    assert spikes.stride() == x.stride()
    assert torch.autograd.grad(spikes.sum(), x)[0].stride() == x.stride()
