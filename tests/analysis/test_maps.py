"""Maps are what they say, and leave the model as it was."""

import pytest
import torch
from conftest import make_model
from torch import nn

from qkformer.analysis import maps
from qkformer.analysis.figures import short

OPTIONS = dict(embed_dim=32, num_heads=4, T=3)


@pytest.fixture(scope="module")
def model():
    return make_model("qkformer_4_384", **OPTIONS, mixers=("token_qk", "channel_qk", "ssa"))


@pytest.fixture(scope="module")
def x():
    return torch.randn(
        2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def test_attentions_are_those_of_the_layers(model, x):
    seen = {}
    handles = [
        model.get_submodule(f"stages.{i}.blocks.0.mixer.branch.{part}").register_forward_hook(
            lambda _m, _a, out, key=(i, part): seen.update({key: out.float()})
        )
        for i, parts in enumerate((("q", "k", "mask_neuron", "mask"), ("q", "k", "mask_neuron",
                                    "mask"), ("q", "k", "v", "product")))
        for part in parts
    ]  # fmt: skip
    found = maps.attentions(model, x)
    for handle in handles:
        handle.remove()
    tokens, channels, ssa, _ = found.values()
    assert [each.kind for each in found.values()] == [
        "QKTokenAttention", "QKChannelAttention", *["SpikingSelfAttention"] * 2]  # fmt: skip

    mask = seen[0, "mask_neuron"]
    assert 0 < mask.mean() < 1
    assert torch.equal(tokens.token_map(), mask.mean((0, 2, 3)))
    matrices = tokens.matrices(sample=1, step=2, head=3)
    q, k = (seen[0, part].unflatten(2, (4, -1))[2, 1, 3].flatten(1) for part in "qk")
    assert torch.equal(matrices["Q"], q) and torch.equal(matrices["K"], k)
    masked = seen[0, "mask"].unflatten(2, (4, -1))[2, 1, 3].flatten(1)
    assert torch.equal(matrices["X'"], masked) and masked.any()

    assert channels.token_map() is None and tokens.channel_mask() is None
    mask = seen[1, "mask_neuron"]
    assert torch.equal(channels.channel_mask(), mask.mean(0).flatten(1)) and mask.any()
    assert torch.equal(channels.matrices()["X'"], seen[1, "mask"][0, 0].flatten(1))

    q, k = (seen[2, part].flatten(3).unflatten(2, (4, -1)) for part in "qk")
    product = torch.einsum("tbhdn,tbhdm->tbhnm", q, k)
    assert product.any() and ssa.size == (4, 4)
    assert torch.equal(ssa.column_sums(), product.sum(3).mean((0, 2)).unflatten(1, (4, 4)))
    assert torch.allclose(ssa.row(5), product[..., 5, :].mean((0, 2)).unflatten(1, (4, 4)))
    assert torch.equal(ssa.matrices(1, 2, 3)["Q^T K"], product[2, 1, 3])


def test_rate_maps_are_means_over_channels_and_cam_follows_its_definition(model, x):
    layer = "stages.1"
    outputs = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *call: outputs.append(call[2]))
    rates = maps.rate_map(model, x, layer)
    assert torch.equal(rates, outputs[0].mean(2).float()) and rates.shape == (3, 2, 8, 8)
    cam, classes = maps.grad_cam(model, x, layer)
    handle.remove()
    # the definition, from the features on
    features = outputs[0].clone().requires_grad_()
    logits = model.forward_head(model.stages[2](features, 3))
    assert classes == logits.argmax(1).tolist()
    (gradient,) = torch.autograd.grad(logits[range(2), classes].sum(), features)
    weights = gradient.mean((3, 4), keepdim=True)
    expected = (weights * features).sum(2).relu().mean(0)
    torch.testing.assert_close(cam, expected.detach().float())
    assert cam.max() > 0
    other, _ = maps.grad_cam(model, x, layer, [(label + 1) % 10 for label in classes])
    assert not torch.equal(other, cam)
    assert maps.enlarged(cam, (16, 16)).shape == (2, 16, 16)


def test_maps_leave_no_hook_gradient_or_mode_behind(model, x):
    model.train()
    maps.attentions(model, x)
    maps.grad_cam(model, x, "stages.2")
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    model.eval()


def test_what_is_not_there_gets_one_line(model, x):
    for error, run in {
        "no layer 'stages.7'": lambda: maps.rate_map(model, x, "stages.7"),
        "no \\[T, B, C, h, w\\]": lambda: maps.grad_cam(model, x, "head"),
        "classes are 0 to 9": lambda: maps.grad_cam(model, x, "stages.2", [10, 0]),
        "there is no token 99": lambda: [*maps.attentions(model, x).values()][2].row(99),
        "names no stages": lambda: maps.stages(nn.ReLU()),
    }.items():
        with pytest.raises(maps.AnalysisError, match=error):
            run()


def test_paths_are_shortened_for_pictures():
    assert short("stages.0.blocks.1.mixer.branch.mask_neuron") == "1 2 mixer A"
    assert short("head_neuron") == "head_neuron"
