"""Every published architecture, to the last digit, through load_checkpoint.

The files in ``golden/`` hold what the published code computed in float64 from synthetic weights.
"""

import naive_qkformer
import numpy as np
import published
import pytest
import torch
import torch.nn.functional as F
from published import PUBLISHED, publish, published_input, published_model, published_state

import qkformer
from qkformer.checkpoint.released import released_names
from qkformer.loss import tet_loss
from qkformer.neurons import SFA, SpikingNeuron

QKFORMER = [case for case in PUBLISHED if "_hst_" in case]
CONVERTED = ["qcfs_resnet18__cifar10", "mst_swin_t__imagenet"]
CASES = [
    pytest.param(case, mode, marks=[pytest.mark.slow] if "imagenet" in case else [])
    for case in PUBLISHED
    for mode in (("original", "fixed") if case in QKFORMER else ("fixed",))
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "mode"), CASES, ids=lambda value: value)
def test_golden(case, mode, tmp_path):
    prefix = f"{mode}." if case in QKFORMER else "ann." if case in CONVERTED else ""
    golden = {k.removeprefix(prefix): v for k, v in published.golden(case).items()}
    B, T, size = (int(golden[k]) for k in ("B", "T", "res"))
    if case == "spikformer__imagenet":
        T = 4  # the file says 1, but its numbers are those of T = 4
    name, options = PUBLISHED[case]
    options = {**options, "T": 1 if case in CONVERTED else T}
    if mode == "original":
        options["ssa"] = mode
    model = qkformer.create_model(name, **options).double()
    publish(published_state(case), case, tmp_path / "checkpoint.pth")
    qkformer.load_checkpoint(model, tmp_path / "checkpoint.pth")
    if getattr(model, "distilled", False):
        model.set_distilled_training()
    x = published_input(case, 0, B, T, size)
    counts = spike_counts(model.eval(), x, golden["eval.logits"])
    if case in CONVERTED:
        spiking = qkformer.convert(model, T=T, method="qcfs")
        counts = spike_counts(spiking, x, golden["snn.eval.logits"])
    expected_counts = golden["snn.eval.spikes" if case in CONVERTED else "eval.spikes"].tolist()
    if case in ("ms_qkformer__cifar10", "maxformer__cifar10"):
        # one neuron where the published stem had two with the same input
        assert expected_counts[0] == expected_counts.pop(1)
    assert counts == expected_counts
    check_training_step(model.train(), x, golden)


def check_training_step(model, x, golden) -> None:
    """Logits, loss, gradients and BatchNorm's statistics."""
    names = {ours: theirs for ours, (theirs, _) in released_names(model).items()}
    logits = model(x)
    if isinstance(logits, tuple):  # the first of two heads
        logits, _ = logits
    loss = F.cross_entropy(logits, torch.from_numpy(golden["target"]))
    loss.backward()
    assert_close(logits.detach(), golden["train.logits"], 1e-9)
    assert_close(loss.item(), golden["train.loss"], 1e-9)
    grads = {names[key]: p.grad for key, p in model.named_parameters() if p.grad is not None}
    norms = dict(zip(golden["train.grad_names"], golden["train.grad_norm"], strict=True))
    sums = dict(zip(golden["train.grad_names"], golden["train.grad_sum"], strict=True))
    assert grads.keys() == norms.keys()
    for key, grad in grads.items():
        assert abs(grad.norm().item() - norms[key]) <= 1e-6 * norms[key] + 1e-9, key
        assert abs(grad.sum().item() - sums[key]) <= 1e-6 * grad.abs().sum() + 1e-9, key
    if "train.buffer_names" in golden:
        buffers = {names[key]: b for key, b in model.named_buffers() if key in names}
        sums = zip(golden["train.buffer_names"], golden["train.buffer_sum"], strict=True)
        for key, expected in sums:
            assert_close(buffers[key].sum().item(), expected, 1e-9)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", [*CONVERTED, "stsa__dvs128gesture"])
def test_logits_of_every_time_step(case):
    golden = published.golden(case)
    B, T, size = (int(golden[k]) for k in ("B", "T", "res"))
    model, prefix = published_model(case), ""
    if case in CONVERTED:
        model, prefix = qkformer.convert(model, T=T, method="qcfs"), "snn."
    x = published_input(case, 0, B, T, size)
    logits = model(x, per_step=True)
    if case == "mst_swin_t__imagenet":  # of which the file has the last
        logits = logits[-1]
    assert_close(logits, golden[f"{prefix}eval.step_logits"], 1e-9)
    if "eval.logits_alone" in golden:
        alone = torch.cat([model(sample[None]) for sample in x])
        assert_close(alone, golden["eval.logits_alone"], 1e-9)
        assert (alone - model(x)).abs().max() > 1e-3  # the fault of the release


@pytest.mark.parametrize("case", ["sdt__cifar10dvs", "sdt__dvs128gesture"])
def test_logits_and_loss_of_every_time_step_in_training(case):
    golden = published.golden(case)
    model = published_model(case).train()
    x = published_input(case, 0, *(int(golden[k]) for k in ("B", "T", "res")))
    logits = model(x, per_step=True)
    assert_close(logits.detach(), golden["train.step_logits"], 1e-9)
    target = torch.from_numpy(golden["target"])
    assert_close(tet_loss(logits, target).item(), golden["train.tet_loss"], 1e-9)


def count(neuron, spikes) -> int:
    """Spikes, of an SFA neuron its integers."""
    unit = neuron.levels if isinstance(neuron, SFA) and neuron.divide else 1
    return round((spikes * unit).sum().item())


def spike_counts(model, x, expected_logits) -> list[int]:
    """Spikes of every neuron, in order of execution; checks the logits on the way."""
    counts = []
    hooks = [
        module.register_forward_hook(lambda m, _, spikes: counts.append(count(m, spikes)))
        for module in model.modules()
        if isinstance(module, SpikingNeuron | SFA)
    ]
    with torch.no_grad():
        assert_close(model(x), expected_logits, 1e-9)
    for hook in hooks:
        hook.remove()
    return counts


def assert_close(got, expected, relative: float) -> None:
    got, expected = np.asarray(got), np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=relative, atol=relative * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["original", "fixed"])
@pytest.mark.parametrize(
    ("case", "seed", "B", "T", "size"),
    [
        ("imagenet_hst_10_384", 1, 3, 2, 96),
        ("imagenet_hst_10_384", 2, 1, 5, 64),
        ("cifar10_hst_4_384", 1, 3, 6, 20),
        ("cifar100_hst_4_384", 3, 1, 1, 32),
        ("cifar10dvs_hst_2_256", 1, 3, 10, 48),
        ("dvs128gesture_hst_2_256", 2, 2, 16, 64),
    ],
)
def test_naive_forward(case, seed, B, T, size, mode):
    """Other seeds, batch sizes, time steps and resolutions than the golden files'."""
    model = published_model(case, seed, T=T, ssa=mode)
    state = published_state(case, seed)
    x = published_input(case, seed, B, T, size)
    heads = {"i": 6, "c": 8, "d": 16}["d" if "dvs" in case else case[0]]
    with torch.no_grad():
        expected = naive_qkformer.forward(state, x, T, heads, original=mode == "original")
        assert_close(model(x), expected, 1e-9)
