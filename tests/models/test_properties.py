"""What holds for every registered model and for the paper's ablations."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import firing, make_model, with_spikes
from families import FAMILIES
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import monitor
from torch import nn

import qkformer
from qkformer.layers import ConvBNNeuron
from qkformer.neurons import LIF, SpikingNeuron

ABLATIONS = {  # of CIFAR100, with the paper's parameter counts in millions
    "qkca+ssa": ({"mixers": ("channel_qk", "channel_qk", "ssa")}, 6.74),
    "qkta+qkca": ({"mixers": ("token_qk", "token_qk", "channel_qk")}, 6.44),
    "ssa": ({"mixers": ("ssa", "ssa", "ssa")}, 6.79),
    "qkca": ({"mixers": ("channel_qk",) * 3}, 6.44),
    "qkta": ({"mixers": ("token_qk",) * 3}, 6.44),
    "without-speds": ({"patch_embed": "sps"}, None),
    "pa": ({"residual": "pa"}, 6.74),
    "if": ({"neuron": "if"}, 6.74),
    "plif": ({"neuron": "plif"}, 6.74),
    "t1": ({"T": 1}, 6.74),
    "t6": ({"T": 6}, 6.74),
    "unscaled": ({"attn_scale": None}, 6.74),
    "wide-mlp": ({"mlp_ratio": 6.0}, None),
}
SPIKFORMER_ABLATIONS = {
    "unscaled": {"attn_scale": None},
    "speds": {"patch_embed": "speds"},
    "plif": {"neuron": "plif"},
}
DATA_SETS = ["qkformer_10_384", "maxformer_10_384", "qkformer_2_256", "spikformer_2_256"]
VARIANTS = [*FAMILIES.items(), *((name, {}) for name in DATA_SETS)]
VARIANTS += [("qkformer_4_384", options) for options, _ in ABLATIONS.values()]
VARIANTS += [("spikformer_4_384", options) for options in SPIKFORMER_ABLATIONS.values()]
VARIANTS += [("spikformer_2_256", {"patch_embed": "speds"}), ("qkformer_2_256", {"mlp_ratio": 4.0})]


def images(model, B=3, seed=0):
    """[B, C, H, W] float64, small and not square."""
    sides = max(2, 16 // model.downsampling)
    size = (model.downsampling * sides, model.downsampling * (sides + 1))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, model.in_chans, *size, generator=generator, dtype=torch.float64)


SMALL = {"embed_dim": 32, "num_heads": 4}


def tiny(name="qkformer_4_384", **options):
    return make_model(name, **SMALL, **options)


def test_models_are_listed_by_pattern():
    names = qkformer.list_models("maxformer_*")
    assert names == [name for name in qkformer.list_models() if "maxformer" in name] != []


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_parameter_counts_of_the_ablations(ablation):
    options, millions = ABLATIONS[ablation]
    with torch.device("meta"):
        model = qkformer.create_model("qkformer_4_384", num_classes=100, **options)
    count = sum(p.numel() for p in model.parameters() if p.ndim)  # not PLIF's time constants
    if millions is None:
        assert count != 6_740_884
    else:
        assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("mixers", "millions"),
    [(("channel_qk", "ssa"), 1.50), (("token_qk", "channel_qk"), 1.44), (("ssa", "ssa"), 1.52)],
)
def test_parameter_counts_of_the_ablations_on_events(mixers, millions):
    model = qkformer.create_model("qkformer_2_256", mixers=mixers)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
@torch.no_grad()
def test_a_sample_is_the_same_alone_and_in_any_batch(name, options):
    small = {} if name in FAMILIES else SMALL
    model = make_model(name, **{"T": 2, **small, **options})
    x = images(model)
    with firing() as fired:
        together = model(x)
    assert all(fired.values()) or name not in FAMILIES
    alone = torch.cat([model(x[[b]]) for b in range(len(x))])
    assert (alone - alone[0]).abs().max() > 1e-6  # samples differ
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(x.flip(0)).flip(0), together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["qkformer_10_384", "qkformer_4_384", "qkformer_2_256"])
@torch.no_grad()
def test_the_original_ssa_depends_on_the_batch(name):
    model = make_model(name, T=2, ssa="original")
    x = images(model)
    alone = torch.cat([model(x[[b]]) for b in range(len(x))])
    assert (model(x) - alone).abs().max() > 1e-3
    # ... even a single sample: its time steps are steps of one sequence in either mode
    fixed = make_model(name, T=2)
    torch.testing.assert_close(model(x[:1]), fixed(x[:1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [*FAMILIES, "qkformer_10_384", "maxformer_10_384"])
def test_a_static_image_equals_the_same_frame_t_times(name, training):
    model = make_model(name, **{**FAMILIES.get(name, SMALL), "T": 3}).train(training)
    twin = copy.deepcopy(model)
    x = images(model, B=2)
    frames = x.unsqueeze(1).repeat(1, 3, 1, 1, 1)
    torch.testing.assert_close(model(x), twin(frames), rtol=1e-10, atol=1e-10)
    for (key, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        if name.startswith(("sew", "mst")) and "stages.0.embed" in key:
            continue  # as published, its variance is unbiased as if the image came once
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=key)
    if training:
        for net, data in ((model, x), (twin, frames)):
            net(data).square().sum().backward()
        largest = max(p.grad.abs().max() for p in model.parameters())
        for (key, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-12 * largest, msg=key)


@torch.no_grad()
def test_time_steps_come_from_frames_and_from_t_for_images():
    model = make_model("qkformer_2_256", T=4)
    spikes = []
    hook = model.stages[0].embed.register_forward_hook(lambda *args: spikes.append(len(args[-1])))
    model(images(model))
    for T in (1, 10):
        model(images(model).unsqueeze(1).expand(-1, T, -1, -1, -1))
    hook.remove()
    assert spikes == [4, 1, 10]


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 32), (2, 1, 32, 32), (2, 3, 30, 32), (2, 3, 32, 33), (2, 4, 2, 32, 32),
     (2, 0, 3, 32, 32), (2, 3, 0, 32), (1, 2, 4, 3, 32, 32)],
    ids=str,
)  # fmt: skip
def test_other_inputs_are_refused_with_both_shapes(shape):
    with pytest.raises(ValueError) as error:
        tiny()(torch.zeros(shape, dtype=torch.float64))
    assert "[B, 3, H, W] or [B, T, 3, H, W] with H and W multiples of 4" in str(error.value)
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "qkformer_4_348"}, ValueError, "did you mean 'qkformer_4_384'"),
        ({"mlp_ration": 4}, TypeError, "qkformer_4_384 takes no argument 'mlp_ration', did you "),
        ({"neuron": "lfi"}, ValueError, "neuron must be one of"),
        ({"residual": "post"}, ValueError, "wiring must be one of"),
        ({"ssa": "leaky"}, ValueError, "ssa must be"),
        ({"patch_embed": "vit"}, ValueError, "patch_embed must be"),
        ({"mixers": ("ssa", "ssa")}, ValueError, "differ in length"),
        ({"mixers": ("ssa", "ssa", "mlp")}, ValueError, "a mixer must be one of"),
        ({"num_heads": 7}, ValueError, "num_heads must divide the 96 channels"),
        ({"drop_path_rate": 1.0}, ValueError, "drop_path_rate"),
        ({"drop_path_rate": "0.1"}, ValueError, "drop_path_rate"),
        ({"T": 2.5}, ValueError, "T must be an integer"),
        ({"depths": (1, -1, 1)}, ValueError, "depths"),
        ({"embed_dim": 100}, ValueError, "embed_dim must be a multiple of 8"),
        ({"mlp_ratio": 0}, ValueError, "mlp_ratio"),
        ({"neuron": ["lif"]}, ValueError, "neuron must be one of"),
        ({"global_pool": "max"}, ValueError, "global_pool"),
        ({"ssa": "leaky", "mixers": ("token_qk",) * 3}, ValueError, "ssa must be"),
        ({"mlp_ratio": 0.001}, ValueError, "mlp_ratio 0.001 of .* is less than a channel"),
        ({"attn_scale": "x"}, ValueError, "attn_scale must be a finite number or None"),
        ({"T": 0}, ValueError, "T must be an integer of at least 1"),
        ({"num_classes": -1}, ValueError, "num_classes must be an integer of at least 0"),
        ({"residual": "pa", "ssa": "original"}, ValueError, "last neuron"),
        ({"mixers": ("token_qk",) * 3, "ssa": "original"}, ValueError, "no stage"),
        ({"name": "ms_qkformer_4_384", "ssa": "original"}, ValueError, "last neuron"),
        ({"name": "maxformer_4_384", "ssa": "original"}, ValueError, "last neuron"),
        ({"name": "maxformer_4_384", "residual": "aba"}, ValueError, "membrane shortcuts"),
        ({"name": "spikformer_4_384", "ssa": "original"}, ValueError, "Spikformer"),
        ({"name": "spikformer_4_384", "residual": "ms"}, ValueError, "before addition"),
        ({"name": "spikingformer_4_384", "residual": "aba"}, ValueError, "membrane shortcuts"),
        ({"name": "spikingformer_4_384", "embed_dim": 100}, ValueError, "a multiple of 8"),
        ({"name": "spikingformer_2_256", "neuron": "if"}, ValueError, "neuron_args do not fit"),
        ({"neuron_args": {"tau": 0.5}}, ValueError, "tau must be at least 1"),
        ({"name": "sdt_2_512", "residual": "aba"}, ValueError, "membrane shortcuts"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        qkformer.create_model(options.pop("name", "qkformer_4_384"), **options)


def test_drop_path_rate_grows_with_depth_and_acts_in_training_only():
    model = tiny(drop_path_rate=0.3)
    rates = [block.mixer.drop_path for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    x = images(model, B=8)
    assert torch.equal(model(x), tiny()(x))
    torch.manual_seed(0)
    first = model.train()(x)
    assert not torch.allclose(first, model(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_changes_nothing_but_memory(name):
    model = make_model(name, T=2, **FAMILIES[name]).train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    x = images(model)
    for net in (model, twin):
        net(x).square().sum().backward()
    for (key, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key
    for (key, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b), key
    twin.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in twin.stages)


# VmHWM: ru_maxrss of a new process begins with what the process that started it had.
# It never falls, so the step that should take more comes last.
PEAK_MEMORY = """
import re, torch, qkformer
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
model = qkformer.create_model("qkformer_4_384", embed_dim=64)
start = peak()
for enable in (True, False):
    model.set_grad_checkpointing(enable)
    model(torch.randn(8, 3, 32, 32)).sum().backward()
    print(peak() - start)
"""


@pytest.mark.slow
def test_gradient_checkpointing_saves_memory():
    output = subprocess.check_output([sys.executable, "-c", PEAK_MEMORY])
    with_it, without_it = map(int, output.split())
    assert with_it < 0.85 * without_it


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_torch_compile_takes_the_whole_forward(name):
    torch._dynamo.reset()
    model = make_model(name, T=2, **FAMILIES[name])
    x = images(model)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_torch_compile_trains():
    model = tiny("qkformer_2_256", T=2, depths=(0, 1), attn_scale=2.0).train()
    with_spikes(copy.deepcopy(model), images(model))
    trained_compiled(model, images(model), "aot_eager", rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_torch_compile_trains_with_inductor():
    """One layer: of a whole model it would compile C++ for minutes."""
    model = nn.Sequential(ConvBNNeuron(3, 8, 3, bias=True, neuron=LIF()))
    nn.init.constant_(model[0].bn.bias, 0.5)
    x = torch.randn(2, 3, 3, 8, 8)
    with_spikes(model, x)
    trained_compiled(model, x, "inductor", rtol=1e-3, atol=1e-3)


def trained_compiled(model, x, backend, **tolerance):
    """Gradients and statistics of a step, compiled and not."""
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    for net in (model, torch.compile(twin, fullgraph=True, backend=backend)):
        net(x).square().sum().backward()
    for (key, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, **tolerance, msg=key)
    for (key, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, **tolerance, msg=key)


@pytest.mark.parametrize(
    ("name", "options"), [*FAMILIES.items(), ("qkformer_4_384", {**SMALL, "neuron": "plif"})]
)
def test_copies_and_pickles(name, options):
    model = make_model(name, T=2, **options)
    x = images(model)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)


def test_spikingjelly_sees_the_neurons():
    model = tiny()
    x = images(model)
    with monitor.OutputMonitor(model, LIF, lambda spikes: spikes.mean().item()) as rates:
        expected = model(x)
    neurons = [name for name, m in model.named_modules() if isinstance(m, SpikingNeuron)]
    assert rates.monitored_layers == neurons
    assert len(rates.records) == len(neurons)
    assert all(0 <= rate <= 1 for rate in rates.records)
    sj_functional.reset_net(model)
    assert torch.equal(model(x), expected)


def test_a_neuron_of_ones_own():
    class Late(LIF):
        def __init__(self, **kwargs):
            super().__init__(**{"tau": 4.0, **kwargs})

    model = tiny(neuron=Late)
    neurons = [m for m in model.modules() if isinstance(m, SpikingNeuron)]
    assert {type(neuron) for neuron in neurons} == {Late}
    assert {neuron.v_threshold for neuron in neurons} == {0.5, 1.0}


def test_backends_share_their_state_dict_keys():
    assert tiny(backend="torch").state_dict().keys() == tiny(backend="auto").state_dict().keys()


IMPORT = """
import random, sys, types
import numpy, torch
sys.modules.update(fcntl=None, resource=None, msvcrt=types.ModuleType("msvcrt"))  # as Windows
states = lambda: (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state())
python, array, tensor = states()
import qkformer, qkformer.layers, qkformer.models, qkformer.neurons.cuda.ops
assert states()[:2] == (python, array) and torch.equal(states()[2], tensor)
assert "cupy" not in sys.modules and not torch.cuda.is_initialized()
"""


@pytest.mark.slow
def test_importing_does_nothing_and_needs_nothing_of_unix():
    subprocess.run([sys.executable, "-c", IMPORT], check=True)


@pytest.mark.parametrize("name", ["ms_qkformer_10_384", "maxformer_10_384"])
def test_convolutions_of_the_membrane_models_start_truncated_normal(name):
    torch.manual_seed(0)
    model = qkformer.create_model(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert abs(module.weight.std().item() - 0.02) < 0.004
    head = model.head
    assert abs(head.weight.std().item() - 0.02) < 0.001 and not head.bias.any()


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_gpu_step_agrees_with_cpu(name):
    model = make_model(name, T=2, **FAMILIES[name]).train()
    twin = copy.deepcopy(model).cuda()
    x = images(model)
    model(x).square().sum().backward()
    twin(x.cuda()).square().sum().backward()
    for (key, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad.cpu(), rtol=1e-5, atol=1e-7, msg=key)
