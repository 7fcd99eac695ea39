"""Masked Spiking Transformer: its random masking; test_naive.py has the rest."""

import pytest
import torch
from conftest import make_model
from families import FAMILIES

import qkformer
from qkformer.peers.mst import RandomMask


def masked(p: float, **options):
    model = make_model("mst_swin_t", **FAMILIES["mst_swin_t"], masking=p, **options)
    generator = torch.Generator().manual_seed(0)
    return model, torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("T", [None, 3])
def test_three_quarters_of_the_spikes_of_q_k_and_their_product_are_masked(T, training):
    model, x = masked(0.75)
    if T:
        model = qkformer.convert(model, T=T, method="qcfs")
    calls = []
    for module in model.modules():
        if isinstance(module, RandomMask):
            module.register_forward_hook(lambda _module, args, out: calls.append((*args, out)))
    model.train(training)(x)
    assert len(calls) == 3 * 3  # q, k and product of three blocks
    fired = passed = 0
    for before, after in calls:
        kept = after != 0
        assert before.any() and torch.equal(after[kept], before[kept])
        fired, passed = fired + (before != 0).sum().item(), passed + kept.sum().item()
    assert fired > 3000 and abs(passed / fired - 0.25) < 0.03


def test_gradients_pass_where_spikes_do():
    x = torch.rand(1000, requires_grad=True)
    y = RandomMask(0.75)(x)
    y.sum().backward()
    assert torch.equal(x.grad, (y != 0).float()) and 150 < y.count_nonzero() < 350


def test_evaluation_is_random_with_masking_only():
    (model, x), (plain, _) = masked(0.75), masked(0.0)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        assert torch.equal(plain(x), plain(x))
    assert model.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match="masking must be a number in"):
        qkformer.create_model("mst_swin_t", masking=1.0)
