"""Test vectors: each layer's arrays give its output again, in integers; neurons' spikes too."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from families import FAMILIES

import qkformer
from qkformer.export import ExportError, export_trace

SMALL = dict(embed_dim=16, num_heads=2, depths=(1, 1), mixers=("token_qk", "ssa"), T=3)
EVENTS = dict(embed_dim=16, num_heads=2, neuron="plif")


def traced(tmp_path, name, int8, shape, options):
    model = make_model(name, **options).float()
    if int8:
        model = qkformer.quantize_int8(model)
    x = torch.randn(shape)
    description = export_trace(model, x, tmp_path / "trace.npz")
    with np.load(tmp_path / "trace.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file if key != "description"}
        assert json.loads(str(file["description"])) == description
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(description["logits"]), model(x)[0], rtol=1e-3,
                                   atol=1e-3)  # fmt: skip
    return model, description, arrays


def arrays_of(layer, arrays):
    own = {word: arrays[f"{layer['name']}.{word}"] for word in layer["arrays"]}
    assert {word: list(values.shape) for word, values in own.items()} == layer["arrays"]
    return own


def linear(layer, x, weight, bias=None):
    if layer["kind"] == "Linear":
        return F.linear(x, weight, bias)
    strides = dict(stride=layer["stride"], padding=layer["padding"], groups=layer["groups"])
    return F.conv2d(x, weight, bias, **strides)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("qkformer_4_384", SMALL, (1, 3, 8, 8)),
        ("qkformer_2_256", EVENTS, (1, 4, 2, 16, 16)),
        ("sew_resnet34", FAMILIES["sew_resnet34"], (1, 3, 32, 32)),
    ],
)
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_arrays_of_a_layer_give_its_output(name, options, shape, int8, tmp_path):
    model, description, arrays = traced(tmp_path, name, int8, shape, options)
    neurons = spikes = integers = 0
    for layer in description["layers"]:
        own = arrays_of(layer, arrays)
        if layer["kind"] in ("LIF", "IF", "PLIF"):
            neurons += 1
            v, rate = torch.full_like(own["current"][0], layer["v_reset"]), layer["reciprocal_tau"]
            for x, expected in zip(own["current"], own["spikes"], strict=True):
                h = v + (x if rate is None else (x - (v - layer["v_reset"])) * rate)
                fired = h >= layer["v_threshold"]
                assert torch.equal(fired, expected.bool())
                v = torch.where(fired, layer["v_reset"], h)
            spikes += int(own["spikes"].sum())
        elif "weight" in own:
            bias = own.get("bias", torch.zeros(len(own["weight"]))).double()
            bias = bias.view(-1, *[1] * (own["weight"].ndim - 2))
            weight = own["weight"].double()
            if int8:
                assert own["weight"].dtype == torch.int8
            if "accumulator" in own:
                integers += 1
                sums = linear(layer, own["input"].long(), own["weight"].long())
                assert torch.equal(sums, own["accumulator"].long())
                scale = own["scale"].double().view_as(bias)
                assert torch.equal(sums * scale + bias, own["output"])
            elif not int8:
                output = linear(layer, own["input"].double(), weight) + bias
                torch.testing.assert_close(output, own["output"])
    assert neurons == sum(isinstance(m, qkformer.neurons.SpikingNeuron) for m in model.modules())
    assert spikes > 100 and (integers > 8) == int8


def test_attention_is_there_with_its_operands(tmp_path):
    _, description, arrays = traced(tmp_path, "qkformer_4_384", False, (1, 3, 8, 8), SMALL)
    mask, product = (
        arrays_of(layer, arrays)
        for layer in description["layers"]
        if layer["kind"] in ("SpikeMask", "SpikeProduct")
    )
    assert mask["q"].dtype == mask["output"].dtype == torch.uint8 and mask["output"].sum() > 0
    q, k, v = (product[word].double() for word in "qkv")
    assert torch.equal(v @ k.mT @ q * 0.125, product["output"])


def test_what_cannot_be_traced_is_said(tmp_path):
    model = make_model("qkformer_4_384", **SMALL)
    with pytest.raises(ExportError, match="expected one sample"):
        export_trace(model, torch.zeros(2, 3, 8, 8), tmp_path / "a.npz")
    with pytest.raises(ExportError, match="a model of qkformer, got Streaming"):
        export_trace(qkformer.streaming(model), torch.zeros(1, 3, 8, 8), tmp_path / "a.npz")
    with pytest.raises(ExportError, match="in training mode"):
        export_trace(model.train(), torch.zeros(1, 3, 8, 8), tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
