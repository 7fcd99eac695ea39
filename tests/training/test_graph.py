"""A training step as a CUDA graph: what can be, what is said where not, that it is the same step.

A tape on the CPU stands in for the graph, and tensors without content for those on a GPU.
"""

import copy
import math
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from same import assert_same
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import tape
from training.few import SMALL, register

import qkformer
from qkformer.data.source import DataConfig
from qkformer.training import graph, learner
from qkformer.training.config import ComputeConfig, Config, ConfigError, ModelConfig
from qkformer.training.distributed import World
from qkformer.training.graph import WARM_UP, check_graph, graph_remarks, obstacle
from qkformer.training.learner import Learner
from qkformer.training.metrics import FiringRates
from qkformer.training.objective import LossConfig
from qkformer.training.optimizer import OptimizerConfig
from qkformer.training.schedule import ScheduleConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FUSED = ["adamw", "adam", "sgd", "momentum"]
# halves and quarters: a rate in float32, as a graph reads it, is the same number
RATES = [2.0**-k for k in (6, 7, 7, 5, 6, 8)]
EVERYTHING = {"accumulation_steps": 2, "clip_grad_norm": 0.5, "ema_decay": 0.75}


@pytest.fixture(autouse=True)
def eager_neuron(monkeypatch):
    register(monkeypatch)


@pytest.fixture
def recorded(monkeypatch):
    """Learners made here record their steps, on the CPU."""
    monkeypatch.setattr(learner, "obstacle", lambda *_: None)
    monkeypatch.setattr(graph, "aside", tape.aside)
    monkeypatch.setattr(graph, "capture", tape.capture)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def configured(name="adamw", loss=None, compute=None, epochs=1, **options):
    return Config(
        epochs=epochs,
        model=ModelConfig("qkformer_4_384"),
        data=DataConfig(name="digits", image_size=8, batch_size=4),
        optimizer=OptimizerConfig(lr=0.25, name=name, weight_decay=0.125, **options),
        loss=LossConfig(**loss or {"label_smoothing": 0.1}),
        schedule=ScheduleConfig("one_cycle"),
        compute=ComputeConfig(**compute or {}),
    )


def network(**options):
    """Fires everywhere, drops paths, counts batches."""
    torch.manual_seed(0)
    size = {"T": 1, "neuron": "eager", "drop_path_rate": 0.2, **SMALL} | options
    return qkformer.create_model("qkformer_4_384", num_classes=3, in_chans=1, **size).train()


def made(*, scaler=False, device=CPU, **options):
    """A learner whose optimizer is fused, as on a GPU."""
    options = {"args": {"fused": True}} | options
    one = Learner(network(), configured(**options), device, World())
    one.optimizer.param_groups[0]["lr_scale"] = 0.25
    if scaler:
        one._new_scaler = lambda: torch.amp.GradScaler("cpu", init_scale=2.0**10)
        one.scaler = one._new_scaler()
    return one


def batches(count, accumulation=2, size=4, soft=True):
    """The parts of so many steps."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        parts = []
        for _ in range(accumulation):
            labels = torch.randint(0, 3, (size,), generator=generator)
            images = torch.rand(size, 1, 8, 8, generator=generator) + labels[:, None, None, None]
            parts.append((images, nn.functional.one_hot(labels, 3).float() if soft else labels))
        yield parts


def stepped(one, steps, rates):
    """Losses and logits, and the bits of the norms, of which one that is no number equals none."""
    results = [one.step(parts, rate) for parts, rate in zip(steps, rates, strict=False)]
    return [(batches, norm.view(torch.int32)) for batches, norm in results]


def trained(one, steps, rates=RATES):
    """What came of the steps: results, weights, all that is kept; from one state of the RNG."""
    torch.manual_seed(5)
    results = stepped(one, steps, rates)
    return {"results": results, "state": one.state_dict(), "random": torch.get_rng_state()}


def eager(**options):
    """A learner that no fixture touches: its steps are run as they are written."""
    one = made(**options)
    one.graph = None
    for group in one.optimizer.param_groups:
        group["lr"] = float(group["lr"])
    return one


# ------------------------------------------------------------------------- it is the same step


@pytest.mark.parametrize(("name", "scaler"), [("adamw", False), *((name, True) for name in FUSED)])
def test_steps_of_a_graph_are_those_of_the_learner_to_the_bit(recorded, name, scaler):
    options = {"name": name, "scaler": scaler, **EVERYTHING}
    steps = list(batches(len(RATES)))
    if scaler:  # a step that overflows is left out, by the graph too
        steps[4][0][1][0] = 1e38
    one, calls = made(**options), []
    one.model.head.register_forward_pre_hook(lambda *_: calls.append(True))
    found = trained(one, steps)
    assert_same(found, trained(eager(**options), steps))
    assert len(calls) == 2 * (WARM_UP + 1)  # then no Python ran any more
    norms = [float(norm.view(torch.float32)) for _, norm in found["results"]]
    assert scaler != math.isfinite(norms.pop(4))
    assert len({*norms}) == len(norms) and min(norms) > 0.5  # all are clipped
    rates = FiringRates(one.model)
    rates.measure(one.model.eval(), steps[0][0][0])
    assert all(0 < float(rate) < 1 for rate in rates.rates(World()).values())


@pytest.mark.parametrize(
    "loss",
    [{"tet_lambda": 0.25}, {"name": "bce", "label_smoothing": 0.1}],
    ids=["every step", "binary"],
)
def test_of_any_loss(recorded, loss):
    steps = list(batches(WARM_UP + 2, accumulation=1, soft=False))
    both = [trained(make(loss=loss), steps) for make in (made, eager)]
    assert_same(*both)
    assert not torch.equal(both[0]["results"][-1][0][0][0], both[0]["results"][-2][0][0][0])


def test_in_bfloat16_as_well(recorded):
    compute = {"precision": "bf16"}
    steps = list(batches(WARM_UP + 2))
    assert_same(*(trained(make(compute=compute, **EVERYTHING), steps) for make in (made, eager)))


def test_other_sizes_and_targets_are_learned_from_as_well_and_recorded_anew(recorded, monkeypatch):
    """A damaged sample makes a batch shorter; without mixup, targets are labels."""
    captures = []
    monkeypatch.setattr(
        graph, "capture", lambda *call: captures.append(call) or tape.capture(*call)
    )
    few, many = WARM_UP + 1, WARM_UP + 2
    steps = [
        *batches(many, 1),
        *batches(1, 1, size=3),
        *batches(WARM_UP, 1),
        *batches(few, 1, soft=False),
        *batches(few),
    ]
    rates = RATES * 4
    assert_same(trained(made(), steps, rates), trained(eager(), steps, rates))
    assert len(captures) == 3  # not of the short one, nor of as many as warm up


def test_what_a_step_returned_stays_when_others_follow(recorded):
    one, kept = made(), []
    for parts in batches(WARM_UP + 3):
        results, norm = one.step(parts, 0.25)
        kept.append((results, norm, copy.deepcopy((results, norm))))
    for results, norm, copied in kept:
        assert_same((results, norm), copied)


# ------------------------------------------------------------------------------- it goes on


@pytest.mark.parametrize(
    ("name", "stopped"), [("momentum", 1), ("adamw", WARM_UP), ("adamw", WARM_UP + 2)]
)
def test_what_goes_on_is_as_what_was_never_stopped(recorded, name, stopped):
    options = {"name": name, "scaler": True, **EVERYTHING}
    steps = list(batches(len(RATES)))
    whole = trained(made(**options), steps)
    first, second = made(**options), made(**options)
    half = trained(first, steps[:stopped])
    trained(second, steps[: WARM_UP + 1])  # has even recorded something else
    second.load_state_dict(half["state"])
    torch.set_rng_state(half["random"])
    results = stepped(second, steps[stopped:], RATES[stopped:])
    assert_same(half["results"] + results, whole["results"])
    assert_same(second.state_dict(), whole["state"])


@pytest.mark.parametrize("recorded_first", [True, False])
def test_a_checkpoint_knows_nothing_of_graphs(recorded, recorded_first):
    """It goes on with and without, and on the CPU unfused."""
    makers = [made, eager] if recorded_first else [eager, made]
    steps = list(batches(len(RATES)))
    whole = trained(makers[0](), steps)
    half = trained(makers[0](), steps[:4])
    rates = [group["lr"] for group in half["state"]["optimizer"]["param_groups"]]
    assert rates == [RATES[3] / 4, RATES[3]] and {type(rate) for rate in rates} == {float}
    second = makers[1]()
    second.load_state_dict(half["state"])
    torch.set_rng_state(half["random"])
    stepped(second, steps[4:], RATES[4:])
    assert_same(second.model.state_dict(), whole["state"]["model"])
    plain = eager(args={})
    plain.load_state_dict(half["state"])
    assert all(isinstance(group["lr"], float) for group in plain.optimizer.param_groups)
    plain.step(steps[4], RATES[4])


# ------------------------------------------------------------------- what cannot be recorded


class Reading(nn.Module):
    """Asks how large its input is, once it has been asked to."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.reads = inner, False

    def forward(self, x):
        y = self.inner(x)
        return y * 2 if self.reads and float(x.sum()) < 0 else y


@pytest.mark.parametrize("where", ["forward", "optimizer"])
def test_a_step_that_cannot_be_recorded_is_taken_all_the_same_and_says_so(
    recorded, monkeypatch, where, capsys
):
    options = {"scaler": True, **EVERYTHING}
    steps = list(batches(len(RATES)))
    both = []
    for make in (made, eager):
        one = make(**options)
        if where == "forward":
            one.network = Reading(one.network)
            one.network.reads = True
        else:  # in the middle of the step: unscaled, and told so
            step = one.optimizer.step

            def reading(step=step, one=one):
                assert one.optimizer.found_inf.item() == 0
                return step()

            one.optimizer.step = reading
        both.append(trained(one, steps))
        assert one.graph is None
    assert_same(*both)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith(
        "compute.cuda_graph: auto, without a graph: a step cannot be recorded (operation not "
    )
    strict = made(compute={"cuda_graph": True}, **options)
    strict.network = Reading(strict.network)
    strict.network.reads = True
    with pytest.raises(ConfigError, match=r"^compute.cuda_graph: true, but a step .* without$"):
        trained(strict, steps)


@contextmanager
def failing_at_its_end(*_, **__):
    """What torch.cuda.graph does when what is recorded failed."""
    try:
        yield
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def test_the_first_error_is_the_reason_and_random_numbers_go_on_as_before(monkeypatch):
    states = []
    generator = SimpleNamespace(clone_state=lambda: "before", graphsafe_set_state=states.append)
    monkeypatch.setattr(torch.cuda, "default_generators", [generator])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", failing_at_its_end)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(graph, "_side_stream", lambda _: SimpleNamespace(device_index=0))

    def function():
        raise RuntimeError("CUDA error: operation not permitted\nCompile with TORCH_USE_CUDA_DSA")

    with pytest.raises(graph.CaptureError, match=r"^CUDA error: operation not permitted$"):
        graph.capture(function, CUDA)
    assert states == ["before"]


@pytest.mark.parametrize(
    ("change", "processes", "device", "reason"),
    [
        ({"compute": {"compile": True}}, 1, CUDA, "compute.compile is another way"),
        ({"compute": {"grad_checkpointing": True}}, 1, CUDA, "grad_checkpointing reads the state"),
        ({"name": "lamb"}, 1, CUDA, "optimizer.name: lamb has no fused step"),
        ({"args": {"fused": False}}, 1, CUDA, "adamw, adam, sgd and momentum have"),
        ({}, 2, CUDA, "has not been tried on GPUs yet; true does it"),
        ({}, 1, CPU, "graphs are for GPUs; take auto or false"),
    ],
    ids=["compile", "checkpointing", "lamb", "unfused", "processes", "cpu"],
)
def test_auto_says_on_a_gpu_why_it_does_without_and_true_is_refused(
    change, processes, device, reason
):
    config = configured(**change)
    assert reason in obstacle(config, device, processes)
    check_graph(config, device, processes)
    lines = graph_remarks(config, device, processes)
    if device == CUDA:
        assert len(lines) == 1 and lines[0].startswith("compute.cuda_graph: auto, without a graph")
        assert reason in lines[0]
    else:
        assert not lines
    config.compute.cuda_graph = True
    if processes > 1:
        assert obstacle(config, device, processes) is None
    else:
        with pytest.raises(ConfigError, match="^compute.cuda_graph: true, but .*" + reason):
            check_graph(config, device, processes)
    config.compute.cuda_graph = False
    assert obstacle(config, device, processes) and not graph_remarks(config, device, processes)


@pytest.mark.parametrize("name", FUSED)
def test_on_a_gpu_steps_are_recorded_with_every_fused_optimizer(name):
    assert obstacle(configured(name), CUDA, 1) is None
    assert not graph_remarks(configured(name), CUDA, 1)


# -------------------------------------------------------------------------- nobody waits


class NobodyWaits(TorchDispatchMode):
    """Refuses what goes from one device to another; FakeTensorMode has no value for who reads."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # of these, which work in place, it does not know what comes out
        if not function.overloadpacket.__name__.startswith(("_amp_", "_fused_")):
            result = function(*args, **(kwargs or {}))
        else:
            result = args[0] if isinstance(args[0], torch.Tensor) else None
        leaves = tree_leaves((args, kwargs, result))
        devices = {x.device.type for x in leaves if isinstance(x, torch.Tensor)}
        assert devices <= {"cuda"}, function
        return result


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_nobody_waits_for_the_gpu_within_a_step(name, monkeypatch):
    """Not even numbers go there: learning rate and gradient scale are on it."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    cpus = torch.Generator()  # that of the mean of weights is for bfloat16
    monkeypatch.setattr(torch, "Generator", lambda device=None: cpus)
    monkeypatch.setattr(learner, "prepare_model", lambda model, *_: model)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    model = network(backend="torch")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():  # as nn.Module.to, which cannot
            for key, own in module._parameters.items():
                module._parameters[key] = None if own is None else nn.Parameter(own.to("cuda"))
            for key, own in module._buffers.items():
                module._buffers[key] = own.to("cuda")
        config = configured(name, compute={"precision": "fp16"}, **EVERYTHING)
        one = Learner(model, config, CUDA, World())
        assert one.scaler.is_enabled() and one.optimizer.param_groups[0]["fused"]

        def backward(_loss):  # PyTorch's starts a thread for a device that is there
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        parts = [tuple(x.to(CUDA) for x in part) for part in next(batches(1))]
        with NobodyWaits():
            for _ in range(2):  # the first one makes the optimizer's state
                results, norm = one._step(parts)
    assert norm.is_cuda and all(x.is_cuda for part in results for x in part)


# ------------------------------------------------------------------------- on a real GPU


def on_gpu(steps):
    return [[tuple(x.to(CUDA) for x in part) for part in parts] for parts in steps]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", FUSED)
def test_a_real_graph_takes_the_same_steps(name, precision):
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    options = {"name": name, "device": CUDA, **EVERYTHING}
    steps = on_gpu([*batches(len(RATES)), *batches(1, size=3), *batches(WARM_UP + 2)])
    found = []
    for wanted in (True, False):
        one = made(compute={"precision": precision, "cuda_graph": wanted}, **options)
        torch.manual_seed(5)
        rates = [rate / 64 for rate in RATES * 2]
        found.append([one.step(parts, rate) for parts, rate in zip(steps, rates, strict=False)])
        assert (one.graph is not None and one.graph._replay is not None) == wanted
    for (ours, norm), (theirs, expected) in zip(*found, strict=True):
        torch.testing.assert_close(norm, expected, rtol=0.05, atol=1e-3, equal_nan=True)
        for (loss, logits), (other, others) in zip(ours, theirs, strict=True):
            torch.testing.assert_close(loss, other, rtol=0.02, atol=1e-3)
            assert logits.shape == others.shape


@pytest.mark.gpu
def test_where_a_real_recording_fails_the_step_is_taken_with_the_same_random_numbers(capsys):
    steps, states = on_gpu(batches(len(RATES))), []
    for wanted in ("auto", False):
        options = {"compute": {"precision": "fp16", "cuda_graph": wanted}, **EVERYTHING}
        one = made(device=CUDA, **options)
        one.network = Reading(one.network)
        one.network.reads = True
        torch.manual_seed(5)
        results = [one.step(parts, rate) for parts, rate in zip(steps, RATES, strict=True)]
        assert one.graph is None
        assert all(loss.isfinite() for parts, _ in results for loss, _ in parts)
        states.append(torch.cuda.get_rng_state(CUDA))
    assert torch.equal(*states)
    assert "auto, without a graph: a step cannot be recorded" in capsys.readouterr().out


@pytest.mark.gpu
def test_nobody_waits_for_a_real_gpu_either():
    one, steps = (
        made(device=CUDA, compute={"precision": "fp16"}, **EVERYTHING),
        batches(WARM_UP + 3),
    )
    for number, parts in enumerate(on_gpu(steps)):
        if number > WARM_UP:  # by then recorded, which waits
            torch.cuda.set_sync_debug_mode("error")
        try:
            one.step(parts, 0.25)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert one.graph._replay is not None
