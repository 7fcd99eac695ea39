"""What is counted, against golden files, against naive counts, and for networks of other people."""

import json
import re
import threading
import time
from statistics import median

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import make_model
from families import ANNS, FAMILIES
from published import GOLDEN, PUBLISHED, published_input, published_state
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import qkformer
from qkformer.analysis import measure
from qkformer.analysis.conventions import CONVENTIONS
from qkformer.checkpoint.released import released_names
from qkformer.data.source import DataError
from qkformer.layers import QKChannelAttention
from qkformer.layers.attention import SpikeProduct
from qkformer.neurons import SFA, SpikingNeuron

ENERGY = GOLDEN / "energy"
MACS = json.loads((ENERGY / "macs.json").read_text())


def assert_meets(got, golden, where=""):
    """Everything in the golden file: integers exactly, other numbers to 1e-12."""
    if isinstance(golden, dict):
        for key, value in golden.items():
            assert_meets(got[key], value, f"{where}/{key}")
    elif isinstance(golden, list):
        assert len(got) == len(golden), where
        for index, value in enumerate(golden):
            assert_meets(got[index], value, f"{where}/{index}")
    elif isinstance(golden, float):
        assert got == pytest.approx(golden, rel=1e-12, abs=0), where
    else:
        assert got == golden, where


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["cifar10_hst_4_384", "cifar10dvs_hst_2_256", "imagenet_hst_10_384"]
)
def test_golden_energy(case):
    golden = json.loads((ENERGY / f"{case}.seed0.json").read_text())
    name, options = PUBLISHED[case]
    model = qkformer.create_model(name, T=golden["T"], **options).double()
    state, shapes = published_state(case), model.state_dict()
    model.load_state_dict(
        {k: state[name].reshape(shapes[k].shape) for k, (name, _) in released_names(model).items()}
    )
    x = published_input(case, 0, *(golden[key] for key in ("B", "T", "res")))
    measured = measure(model, [x])
    got = measured.to_json()
    for key in ("B", "T", "energy", "breakdown_qkformer_mJ", "layers", "attention", "neurons"):
        assert_meets(got[key], golden[key], key)
    for name in CONVENTIONS:  # and the parts are the whole
        parts = sum(each["mJ"][name] for each in (*got["layers"], *got["attention"]))
        assert parts == pytest.approx(golden["energy"][name]["mJ"], rel=1e-12)
    assert sum(got["breakdown_qkformer_mJ"].values()) == pytest.approx(
        golden["energy"]["qkformer"]["mJ"], rel=1e-12
    )
    assert "multiply-accumulates of no listed layer" not in measured.left_out


@pytest.mark.parametrize("case", MACS["totals"])
def test_macs_of_published_models_without_data_and_as_torch_counts_them(case):
    name, size = case.split("@")
    in_chans = 2 if "2_256" in name else 3
    with torch.device("meta"):
        model, x = qkformer.create_model(name, T=1), torch.empty(1, in_chans, *[int(size)] * 2)
    measured = measure(model, [x])
    assert measured.macs == measured.executed_macs == MACS["totals"][case]
    if case in MACS:
        assert {each.layer: each.macs for each in measured.layers} == MACS[case]["layers"]
        products = {a.layer: a.macs for a in measured.attention if hasattr(a, "v_sum")}
        assert products == {key: ssa["kv_first"] for key, ssa in MACS[case]["ssa"].items()}


# ----------------------------------------------------------------------------- naive counts


def naive(model, x):
    """Spikes of neurons; sum, nonzeros and additions of layers, by convolutions of ones."""
    counts = {}

    def of_neuron(name):
        return lambda _module, _args, out: counts.update({name: int(out.sum())})

    def of_conv(name):
        def hook(conv, args, _out):
            ones = torch.ones_like(conv.weight)
            inputs = (args[0], (args[0] != 0).to(args[0].dtype))
            sums = [conv._conv_forward(each, ones, None).sum() for each in inputs]
            counts[name] = [int(v) for v in (*(each.sum() for each in inputs), *sums)]

        return hook

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, SpikingNeuron):
            hooks.append(module.register_forward_hook(of_neuron(name)))
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(of_conv(name)))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return counts


SMALL = dict(embed_dim=32, num_heads=4)
MODELS = {
    "qkformer_4_384": dict(SMALL, T=3),
    "qkformer_10_384": dict(SMALL, T=2, ssa="original"),
    "qkformer_2_256": dict(SMALL, neuron="plif"),
    "ms_qkformer_4_384": dict(SMALL, T=2),
    "maxformer_10_384": dict(SMALL, T=2),
    "maxformer_2_256": dict(SMALL),
    "spikformer_4_384": dict(SMALL, T=2, depth=1),
}


def inputs(name, samples=3):
    generator = torch.Generator().manual_seed(1)
    if "2_256" in name:
        rates = torch.full((samples, 4, 2, 32, 32), 0.5, dtype=torch.float64)
        return torch.poisson(rates, generator=generator)
    return torch.randn(samples, 3, 32, 32, dtype=torch.float64, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_convolutions_with_ones_in_one_batch_or_two(name):
    model = make_model(name, **MODELS[name])
    x = inputs(name)
    whole = measure(model, [(x, "labels")])
    expected = naive(model, x)
    assert {each.neuron: each.spikes for each in whole.neurons} == {
        key: value for key, value in expected.items() if isinstance(value, int)
    }
    rates = [each.rate for each in whole.neurons]
    assert 0.05 < sum(rates) / len(rates) < 0.95
    kinds = [each.kind for each in whole.layers]
    assert kinds[0] == ("integer" if "2_256" in name else "real") and kinds[-1] == "head"
    for each in whole.layers:
        if each.kind in ("binary", "integer"):
            got = [each.input_sum, each.input_nonzero, each.adds, each.adds_nonzero]
            assert got == expected[each.layer]
    assert whole.macs > 0 and "multiply-accumulates of no listed layer" not in whole.left_out
    assert any("original" in remark for remark in whole.remarks) == (model.ssa == "original")
    if model.ssa == "fixed":
        assert measure(model, [x[:2], x[2:]]) == whole
    if name == "qkformer_4_384":
        folded = measure(qkformer.fuse_for_inference(model), [x])
        assert [n.spikes for n in folded.neurons] == [n.spikes for n in whole.neurons]
        assert folded.macs == whole.macs and all(each.bias for each in folded.layers)


def test_channel_attention_alone_with_time_in_front():
    attention = QKChannelAttention(8, 2).double().eval()
    for each in (attention.q.bn, attention.k.bn):
        each.bias.data.fill_(1.2)
    x = torch.randint(0, 2, (3, 2, 8, 4, 5), dtype=torch.float64)
    (got,) = measure(attention, [x], batch_axis=1).attention
    with torch.no_grad():
        q, k = attention.q(x), attention.k(x)
        mask = attention.mask_neuron(q.sum((3, 4), keepdim=True))
    assert mask.sum() > 0 and 0 < q.mean() < 1
    assert (got.q_sum, got.k_sum, got.mask_sum) == (q.sum(), k.sum(), mask.sum())
    assert (got.masked_sum, got.mask_numel) == ((mask * k).sum(), mask.numel())
    assert (got.kind, got.tokens, got.steps) == ("QKChannelAttention", 20, 3)
    sums = q.sum((3, 4))
    assert got.sums.mean == pytest.approx(sums.mean().item())
    assert got.sums.variance == pytest.approx(sums.var(correction=0).item())


# ------------------------------------------------------------------------ the model is left alone


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = make_model("qkformer_4_384", **SMALL).train()
    model.stages[0].eval()
    x = inputs("qkformer_4_384")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes, hooks = [m.training for m in model.modules()], hooks_of(model)
    with torch.no_grad():
        before = model.eval()(x)
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
    if fails:
        with pytest.raises(ValueError, match="expected"):
            measure(model, [x, x[..., :5]])
    else:
        measure(model, [x])
    assert [m.training for m in model.modules()] == modes and hooks_of(model) == hooks
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model.eval()(x), before)


@pytest.mark.slow
def test_measuring_costs_at_most_twice_a_forward_pass():
    # half as wide as published: of the narrow ones of other tests, hooks take as long as layers
    model = make_model("qkformer_4_384", embed_dim=192, num_heads=4).float()
    x = torch.randn(8, 3, 32, 32)

    def seconds(run):
        start = time.process_time()  # of this process: other ones do not count
        run()
        return time.process_time() - start

    def forward():
        with torch.no_grad():
            for _ in range(2):
                model(x)

    forward()
    ratios = [seconds(lambda: measure(model, [x] * 2)) / seconds(forward) for _ in range(3)]
    assert median(ratios) < 2


# -------------------------------------------------------------------------- networks of others


def foreign(step_mode):
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="reflect"),
        neuron.LIFNode(),
        layer.Conv2d(4, 4, 3, dilation=2, groups=2, bias=False),
        neuron.IFNode(),
        nn.Flatten(-3),
        nn.Linear(4 * 4 * 4, 5),
    ).double()
    functional.set_step_mode(net, step_mode)
    for module in net[:3:2]:
        nn.init.uniform_(module.weight, -0.1, 0.3)
    return net


class StepByStep(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.T = net, 3

    def forward(self, x):
        return sum(self.net(x) for _ in range(self.T))


def test_spikingjelly_networks_step_by_step_and_all_at_once_agree():
    torch.manual_seed(0)
    x = torch.rand(2, 2, 15, 15, dtype=torch.float64)
    single, multi = foreign("s"), foreign("m")
    multi.load_state_dict(single.state_dict())
    single[1].v = past = torch.ones(2, 4, 8, 8, dtype=torch.float64)
    by_step = measure(StepByStep(single), [x])
    at_once = measure(multi, [x.expand(3, -1, -1, -1, -1)], batch_axis=1)
    assert single[1].v is past  # a pass of its own, behind which all is as before
    for one, other in ((by_step, at_once), (at_once, measure(multi, [x.repeat(3, 1, 1, 1, 1)],
                                                             batch_axis=1))):  # fmt: skip
        assert [n.steps for n in one.neurons] == [n.steps for n in other.neurons]
        assert [v.additions for v in one.layers] == [v.additions for v in other.layers]
    assert all(0 < n.rate < 1 for n in at_once.neurons)
    first, second, head = at_once.layers
    assert (first.kind, second.kind, head.kind) == ("real", "binary", "head")
    assert first.steps == second.steps == head.steps == 3
    assert second.macs == 4 * 4 * 4 * 2 * 9
    functional.reset_net(multi)
    with torch.no_grad():
        spikes = multi[1](multi[0](x.expand(3, -1, -1, -1, -1))).flatten(0, 1)
    ones = torch.ones(4, 2, 3, 3, dtype=torch.float64)
    assert second.adds == F.conv2d(spikes, ones, dilation=2, groups=2).sum()


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_additions_at_borders_with_padding_of_any_kind(mode):
    conv = nn.Conv2d(2, 3, (5, 3), (2, 1), (2, 1), bias=False, padding_mode=mode).double()
    x = torch.randint(0, 3, (2, 2, 7, 6), dtype=torch.float64)
    (counted,) = measure(nn.Sequential(conv), [x]).layers
    assert counted.kind == "integer" and counted.input_max == 2
    ones = torch.ones_like(conv.weight)
    assert counted.adds == conv._conv_forward(x, ones, None).sum()


def test_an_ann_is_real_throughout_and_its_products_are_found():
    with torch.device("meta"):
        vit, x = timm.create_model("vit_base_patch16_224"), torch.empty(1, 3, 224, 224)
    measured = measure(vit, [x])
    assert {each.kind for each in measured.layers} == {"real", "head"}
    products = 12 * 2 * 197**2 * 768  # q k^T and (..) v of 12 blocks
    assert measured.left_out["multiply-accumulates of no listed layer"] == products
    assert measured.executed_macs == measured.macs == 17_563_828_224
    assert measured.ann()["mJ"] == pytest.approx(4.6e-9 * 17_563_828_224)
    assert measured.energy()["qkformer"]["macs"] == measured.macs - products - 768_000
    assert any("an ANN" in remark for remark in measured.remarks)


def macs_by_torch(model, x) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops, torch.no_grad():
        model(x)
    return flops.get_total_flops() // 2 // len(x)


def test_an_ann_of_windows_is_counted_as_torch_counts_it():
    options = dict(img_size=32, depths=(2, 2), embed_dim=16, num_heads=(2, 4), window_size=4)
    swin = timm.create_model("swin_tiny_patch4_window7_224", **options).eval()
    x = torch.randn(2, 3, 32, 32)
    measured = measure(swin, [x])
    assert measured.executed_macs == measured.macs == macs_by_torch(swin, x)
    assert {each.kind for each in measured.layers} == {"real", "head"} and not measured.neurons


# What is no sum of spikes behind the first convolution: between two linear maps, or behind a mean.
REAL_INPUTS = {
    "metaspikformer_8_384": r"depthwise|last|sep\.branch\.2",
    "espikeformer_12_512": r"(attn\.branch\.0\.(q|k|v|proj)|rep\.branch)\.1\.conv",
    "resnet19_snn": r"head_neuron",
}


def small(name):
    """A small instance of a family that fires, and input for it."""
    model = make_model(name, **FAMILIES[name])
    sides = max(2, 32 // model.downsampling)
    size = [side * model.downsampling for side in (sides, sides + 1)]
    shape = (2, model.T if model.in_chans == 2 else 1, model.in_chans, *size)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    return model, x.squeeze(1) if model.in_chans == 3 else x


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_counted_and_its_macs_are_torchs(name):
    model, x = small(name)
    measured = measure(model, [x])
    assert measured.executed_macs == macs_by_torch(model, x)
    if measured.T == 1:
        assert measured.macs == measured.executed_macs
    known = [m for m in model.modules() if isinstance(m, SpikingNeuron | SFA)]
    assert len(measured.neurons) == len(known) and all(n.spikes > 0 for n in measured.neurons)
    assert bool(known) == (name not in ANNS)
    first, *others, _head = measured.layers
    assert first.kind == "real"  # of normalised images
    if known:
        real = [each.layer for each in others if each.kind == "real"]
        expected = re.compile(REAL_INPUTS.get(name, "nothing"))
        assert real == [each.layer for each in others if expected.search(each.layer)]
        rates = [each.rate for each in measured.neurons]
        assert 0.1 < sum(rates) / len(rates) < 2.5  # of up to 4 in E-SpikeFormer
        assert any("no estimate" in remark for remark in measured.remarks) is False
    products = "multiply-accumulates of no listed layer" in measured.left_out
    assert products == name.startswith(("transformer", "stsa", "mst"))


def test_attention_that_mixes_samples_is_remarked():
    options = dict(FAMILIES["stsa_2_256"], T=2, img_size=32)
    x = torch.randn(2, 2, 2, 32, 32, dtype=torch.float64)
    fixed, original = (
        measure(make_model("stsa_2_256", stsa=stsa, **options), [x])
        for stsa in ("fixed", "original")
    )
    assert [remark for remark in original.remarks if "stsa original" in remark]
    assert not fixed.remarks and original.layers != fixed.layers


@pytest.mark.parametrize("name", ["espikeformer_t", "espikeformer_12_512"])
def test_integers_cost_as_much_as_the_binary_steps_that_they_become(name):
    model, x = small(name)
    integers, steps = measure(model, [x]), measure(qkformer.convert(model, method="sfa"), [x])
    assert [n.spikes for n in integers.neurons] == [n.spikes for n in steps.neurons]
    assert {each.kind for each in integers.layers} == {"real", "integer", "binary", "head"}
    assert {each.input_max for each in steps.layers if each.kind == "binary"} == {1}
    assert all(each.kind != "integer" for each in steps.layers)
    for one, other in zip(integers.attention, steps.attention, strict=True):
        assert (one.q_sum, one.k_sum, one.v_sum) == (other.q_sum, other.k_sum, other.v_sum)
        assert (one.sums.total, one.kv_coincidences) == (other.sums.total, other.kv_coincidences)
    for convention in ("qkformer", "events"):
        one, other = (each.energy()[convention]["acs"] for each in (integers, steps))
        assert one == pytest.approx(other, rel=1e-12)
    assert steps.executed_macs == macs_by_torch(qkformer.convert(model, method="sfa"), x)


@pytest.mark.parametrize("name", ["qcfs_resnet18", "mst_swin_t"])
def test_spikes_of_a_learned_height_are_spikes(name):
    model, x = small(name)
    spiking = qkformer.convert(model, T=3, method="qcfs")
    measured = measure(spiking, [x])
    assert len(measured.neurons) >= 5 and all(n.spikes > 0 for n in measured.neurons)
    assert measured.executed_macs == macs_by_torch(spiking, x)
    _, *others, _ = measured.layers
    real = [each.layer for each in others if each.kind != "binary"]
    assert all("reduction" in layer for layer in real)  # behind BatchNorm, in Swin's merging
    assert len(others) > 4 * len(real) and measured.energy()["events"]["acs"] > 0


class Quarters(nn.Module):
    """An integer neuron: 0 to 4 spikes, each of a quarter."""

    spike_height = 0.25

    def forward(self, x):
        return x.clamp(0, 4).round() / 4


def test_neurons_of_several_spikes_count_each():
    torch.manual_seed(0)
    net = nn.Sequential(Quarters(), nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 1))
    x = torch.rand(2, 2, 4, 4) * 5
    measured = measure(net, [x])
    spikes = int(x.clamp(0, 4).round().sum())
    assert [n.spikes for n in measured.neurons] == [spikes] and spikes > 64
    conv, last = measured.layers
    assert (conv.kind, conv.input_sum, conv.input_max) == ("integer", spikes, 4)
    assert last.kind == "real" and measured.energy()["qkformer"]["macs"] == last.macs


def test_a_layer_is_what_it_is_over_all_batches():
    net = nn.Sequential(nn.Conv2d(1, 1, 1))
    ones = torch.ones(2, 1, 2, 2)
    kinds = [measure(net, batches).layers[0].kind for batches in ([ones], [ones, 2 * ones])]
    assert kinds == ["binary", "integer"]
    assert measure(net, [ones, 0.5 * ones]).layers[0].kind == "real"


class Operands(nn.Module):
    def __init__(self):
        super().__init__()
        self.product = SpikeProduct(0.3)

    def forward(self, x):
        return self.product(*x.unbind(2))


def test_independent_spikes_have_the_statistics_of_theory():
    generator = torch.Generator().manual_seed(0)
    f, N, d = (0.3, 0.4, 0.5), 16, 8
    rates = torch.tensor(f).view(3, 1, 1, 1).expand(4, 256, 3, 2, d, N)
    x = torch.bernoulli(rates, generator=generator)
    (measured,) = measure(Operands(), [x], T=4, batch_axis=1).attention
    p = f[0] * f[1] * f[2]
    assert measured.sums.mean == pytest.approx(N * d * p, rel=0.01)
    q, k, v = x.double().unbind(2)
    products = torch.einsum("tbhdn,tbhdm,tbhem->tbhen", q, k, v)
    assert measured.sums.total == products.sum()
    assert measured.sums.variance == pytest.approx(products.var(correction=0).item())
    assert measured.kv_coincidences == torch.einsum("tbhdm,tbhem->", k, v)


# --------------------------------------------------------------------------- several processes


class Together:
    """Processes as threads, each with its own model."""

    def __init__(self, size):
        self.barrier, self.values = threading.Barrier(size), {}

    def total(self, values):
        self.values[threading.get_ident()] = values
        self.barrier.wait(timeout=60)
        result = sum(self.values.values())
        self.barrier.wait(timeout=60)
        return result


def test_processes_that_share_the_batches_get_the_whole_even_one_without_any():
    name = "qkformer_4_384"
    x = inputs(name, 5)
    shares = ([x[:2], x[4:]], [x[2:4]], [])
    world, results = Together(len(shares)), {}

    def run(index):
        model = make_model(name, **MODELS[name])
        results[index] = measure(model, shares[index], world=world)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = measure(make_model(name, **MODELS[name]), [x])
    assert all(results[index] == alone for index in range(len(shares)))


# ------------------------------------------------------------------------------------ bad input


def test_an_untrained_model_is_said_to_give_no_estimate():
    model = qkformer.create_model("qkformer_4_384", **SMALL)
    measured = measure(model, [inputs("qkformer_4_384").float()])
    assert any("no estimate" in remark for remark in measured.remarks)


def test_bad_input_gets_one_line():
    net = nn.Sequential(nn.Conv2d(1, 1, 1))
    with pytest.raises(DataError, match="there is no batch"):
        measure(net, [])
    with pytest.raises(DataError, match="inputs of one size"):
        measure(net, [torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)])
    folded = nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(1, 1, 1))
    with pytest.raises(DataError, match="cannot tell time steps"):
        measure(folded, [torch.ones(2, 3, 1, 4, 4)], T=2)
