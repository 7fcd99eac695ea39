"""The peers against their descriptions, at seeds, T, batches and sizes of no golden file."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from families import FAMILIES
from naive import attention, flat, layers, meta, resnet
from torch import nn

import qkformer
from qkformer.checkpoint import NoPublishedNames
from qkformer.neurons import SFA, SpikingNeuron
from qkformer.peers.qcfs import QCFS

ACTIVATIONS = (SpikingNeuron, SFA, QCFS, nn.ReLU)
CIFAR, ALL = (False, False, True, True), (True,) * 4
EVENTS = dict(embed_dim=32, num_heads=4, depth=2)
META = dict(depths=(1, 1, 2, 2, 1))
# registered name, options over those of FAMILIES, the naive forward
CASES = {
    "spikingformer": (
        "spikingformer_4_384", dict(depth=2), partial(flat.spikingformer, heads=2, pools=CIFAR),
    ),
    "spikingformer events": (
        "spikingformer_2_256", EVENTS, partial(flat.spikingformer, heads=4, pools=ALL, tau=1.5),
    ),
    "cml spikingformer events": (
        "cml_spikingformer_2_256", dict(depth=2),
        partial(flat.spikingformer, heads=2, pools=ALL, before=True, tau=1.75),
    ),
    "cml spikformer": (
        "cml_spikformer_4_384", dict(depth=2), partial(flat.cml_spikformer, heads=4, pools=CIFAR),
    ),
    "sdt": ("sdt_2_512", dict(depth=2), partial(flat.sdt, heads=4, pools=CIFAR)),
    "sdt events": (
        "sdt_2_256", dict(mixer="sdsa"),
        partial(flat.sdt, heads=4, pools=(False, True, True, True)),
    ),
    "sdt cifar10-dvs": (
        "sdt_2_256", dict(pools=CIFAR), partial(flat.sdt, heads=4, pools=CIFAR, pooled=True),
    ),
    "meta-spikeformer": ("metaspikformer_8_384", META, partial(meta.metaspikeformer, heads=4)),
    "e-spikeformer": ("espikeformer_t", META, partial(meta.espikeformer, heads=4)),
    "e-spikeformer 12_512": (
        "espikeformer_12_512", dict(depths=(1, 1, 2, 2)),
        partial(meta.large_espikeformer, heads=4),
    ),
    "e-spikeformer 12_768": (
        "espikeformer_12_768", FAMILIES["espikeformer_12_512"],
        partial(meta.large_espikeformer, heads=4),
    ),
    "sew-resnet add": (
        "sew_resnet34", dict(depths=(2, 1, 1, 1)),
        partial(resnet.sew_resnet, connection=lambda branch, shortcut: branch + shortcut),
    ),
    "sew-resnet iand": (
        "sew_resnet101", dict(depths=(2, 1, 2, 1)),
        partial(resnet.sew_resnet, connection=lambda branch, shortcut: shortcut * (1 - branch)),
    ),
    "sew-resnet and": (
        "sew_resnet34", dict(connection="AND"),
        partial(resnet.sew_resnet, connection=lambda branch, shortcut: branch * shortcut),
    ),
    "resnet-19": ("resnet19", dict(depths=(2, 1, 2)), partial(resnet.resnet19, act=F.relu)),
    "resnet-19 snn": (
        "resnet19_snn", dict(depths=(2, 1, 2)), partial(resnet.resnet19, act=layers.tdbn_fire),
    ),
    "transformer": (
        "transformer_4_384", dict(depth=2), partial(flat.transformer, heads=4, pools=CIFAR),
    ),
}  # fmt: skip
# seed, T, B, size
SETTINGS = [(1, 3, 3, (64, 96)), (3, 5, 1, (96, 64))]


def published(model) -> dict:
    try:
        return qkformer.released_state_dict(model)
    except NoPublishedNames:
        return model.state_dict()


def images(model, seed: int, B: int, size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, model.in_chans, *size, generator=generator, dtype=torch.float64)


@torch.no_grad()
def check(model, x, expected) -> None:
    """The logits are as expected, of a network that neither is silent nor fires all the time."""
    rates = []
    hooks = [
        module.register_forward_hook(lambda _m, _x, y: rates.append((y > 0).double().mean().item()))
        for module in model.modules()
        if isinstance(module, ACTIVATIONS)
    ]
    logits = model(x)
    for hook in hooks:
        hook.remove()
    assert len(rates) >= 7 and min(rates) > 0 and 0.1 < sum(rates) / len(rates) < 0.9
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("seed", "T", "B", "size"), SETTINGS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_description(case, seed, T, B, size):
    name, options, forward = CASES[case]
    model = make_model(name, seed, **{**FAMILIES.get(name, {}), "T": T, **options})
    x = images(model, seed, B, size)
    check(model, x, forward(published(model), torch.stack([x] * T)))


@pytest.mark.parametrize(("seed", "T", "B", "size"), SETTINGS, ids=str)
def test_event_frames_take_their_steps_from_the_input(seed, T, B, size):
    name, options, forward = CASES["spikingformer events"]
    model = make_model(name, seed, **options)
    frames = torch.stack([images(model, seed + t, B, size) for t in range(T)])
    check(model, frames.transpose(0, 1), forward(published(model), frames))


@pytest.mark.parametrize("stsa", ["fixed", "original"])
@pytest.mark.parametrize(("seed", "T", "B", "size"), [(1, 3, 3, (32, 48)), (2, 2, 2, (48, 64))])
def test_stsa_is_as_described_and_as_released(seed, T, B, size, stsa):
    options = dict(FAMILIES["stsa_2_256"], depth=2, T=T, img_size=size, stsa=stsa)
    model = make_model("stsa_2_256", seed, **options)
    frames = torch.stack([images(model, seed + t, B, size) for t in range(T)])
    expected = attention.stsa(published(model), frames, original=stsa == "original")
    check(model, frames.transpose(0, 1), expected)


@pytest.mark.parametrize(("seed", "T", "B", "size"), [(1, 5, 3, (32, 16)), (2, 8, 1, (32, 48))])
@pytest.mark.parametrize("name", ["qcfs_resnet18", "mst_swin_t"])
def test_anns_and_what_they_are_converted_to_are_as_described(name, seed, T, B, size):
    depths = (2, 2) if name.startswith("qcfs") else (2, 1)
    model = make_model(name, seed, **FAMILIES[name] | {"depths": depths})
    state, x = published(model), images(model, seed, B, size)
    levels, theta = (8, "thresh") if name.startswith("qcfs") else (16, "up")
    forward = resnet.resnet18
    if name.startswith("mst"):
        forward = partial(attention.mst, heads=(1, 2), window=2)
    check(model, x, forward(state, x[None], act=partial(layers.quantised, state, levels, theta)))
    spiking = qkformer.convert(model, T=T, method="qcfs")
    steps = torch.stack([x] * T)
    check(spiking, x, forward(state, steps, act=partial(layers.converted, state, theta)))
