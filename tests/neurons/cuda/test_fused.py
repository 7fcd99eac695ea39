"""BatchNorm, pool and neuron in one kernel, compiled by g++, against PyTorch's modules."""

import random
from functools import partial

import pytest
import torch
from fused_reference import agree, fused, margin, plain, random_problem, table
from torch.nn import functional as F

from qkformer.neurons.cuda import launch, loader, ops
from qkformer.neurons.reference import membrane_dtype

DTYPES = tuple(loader.DTYPES)
KINDS = {1: "if", 4: "lif", 7: "if", 16: "plif", 40: "plif"}  # by T: few kernels to compile


@pytest.fixture(autouse=True)
def few_threads(host, monkeypatch):
    """So that in small problems too a thread sums over several neurons, and takes several."""
    monkeypatch.setattr(launch, "PER_THREAD", 1)
    monkeypatch.setattr(launch, "REDUCING_BLOCKS", 24)
    monkeypatch.setattr(launch, "WORK_THREADS", 32)


def random_options(seed: int) -> dict:
    draw = random.Random(seed)
    steps = draw.choice([1, 4, 4, 7, 16, 40])
    shape = (draw.randint(1, 3), *(draw.choice([1, 2, 3, 4, 5, 7, 8, 12]) for _ in range(3)))
    names = ("last", "repeated", "pool", "training", "affine", "residual", "conv_bias")
    flags = {name: draw.random() < 0.6 for name in names}
    if flags["repeated"] or steps == 1:
        shape = (3, *shape[1:])  # enough values per channel for statistics
    return dict(shape=shape, steps=steps, kind=KINDS[steps], seed=seed) | flags


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(24))
def test_agrees_with_the_modules(seed, dtype):
    agree(random_problem(dtype=dtype, **random_options(seed)))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_agrees_on_ordinary_shapes(training, pool, last):
    for repeated in (False, True):
        agree(
            random_problem(
                (2, 8, 6, 10), steps=4, kind="lif", dtype=torch.float16, last=last,
                pool=pool, training=training, repeated=repeated, residual=True, conv_bias=True,
            )
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_extreme_values_pass_as_through_the_modules(value, pool, dtype):
    p = random_problem((2, 3, 5, 6), steps=4, kind="lif", dtype=dtype, pool=pool, training=False)
    p.x[1, 1, 2, 2] = p.x[4, 2, 0, 0] = value
    expected, exact = plain(p.to(torch.float64))
    safe = (margin(p.to(torch.float64)) > 1e-4).repeat(4, 1, 1, 1)
    got, grads = fused(p)
    assert torch.equal(got[safe].double(), expected[safe])
    for name, gradient in grads.items():
        finite = exact[name].isfinite()
        if name == "weight" and pool:  # the modules add 0 * inf where there is no maximum
            finite = finite | gradient.isfinite()
        assert torch.equal(gradient.isfinite(), finite), name


def test_the_first_of_equal_maxima_takes_the_gradient():
    """As in max_pool2d, in either layout; half-integer inputs are full of ties."""
    for last in (False, True):
        p = random_problem((2, 4, 7, 8), steps=4, kind="lif", dtype=torch.float64, pool=True)
        layout = torch.channels_last if last else torch.contiguous_format
        p.x = (p.x / 4).round().contiguous(memory_format=layout)
        torch.testing.assert_close(fused(p), plain(p))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("steps", [4, 16])
def test_maxima_are_where_pytorch_finds_them(steps, last):
    """With ties, infinities and NaNs; where the weight is negative, zero or NaN too."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(steps * 2, 8, 7, 10, generator=generator) * 2).round() / 2
    for value in (float("nan"), float("inf"), -float("inf")):
        x[:, :7][torch.rand(x[:, :7].shape, generator=generator) < 0.04] = value
    weight = torch.tensor([1.0, -1.5, 0.0, 0.7, -0.3, 2.0, float("nan"), -0.0])
    mean, var, bias = (torch.full((8,), value) for value in (0.25, 16.0, 0.25))
    z = F.batch_norm(x, mean, var, weight, bias, eps=0.0)
    _, index = F.max_pool2d(z, 3, 2, 1, return_indices=True)

    layout = torch.channels_last if last else torch.contiguous_format
    norm = ops.fixed_norm(weight, bias, None, [mean], [var], 0.0)
    neuron = launch.Neuron(None, 0.5, 1.0, 0.0, 4.0)
    x = x.contiguous(memory_format=layout)
    call = launch.Call(x, norm, None, neuron, steps, False, True)
    grad = torch.ones(index.shape).contiguous(memory_format=layout)
    grad_max, place, partial = launch.pooled_backward(call, grad)
    grad_max, place = (t.as_strided(grad.shape, grad.stride()) for t in (grad_max, place.long()))
    h = 2 * torch.arange(grad.shape[2])[:, None] - 1 + place // 3
    w = 2 * torch.arange(grad.shape[3]) - 1 + place % 3
    assert torch.equal(h * x.shape[3] + w, index)
    centered = (x - 0.25).flatten(2).gather(2, index.flatten(2)).view_as(grad)
    expected = (grad_max * centered)[:, 7].sum()
    assert expected.abs() > 0.1
    torch.testing.assert_close(partial.sum(1)[1, 7], expected)


def test_layouts_of_gradients_and_outputs():
    p = random_problem((2, 4, 6, 8), steps=4, kind="lif", dtype=torch.float32, last=True)
    out, grads = fused(p)
    assert out.stride() == grads["x"].stride() == p.x.stride()
    for grad in (
        p.grad.contiguous(memory_format=torch.channels_last),
        p.grad.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        p.grad = grad
        torch.testing.assert_close(fused(p)[1], grads, rtol=0, atol=0)
    p.x = p.x.transpose(2, 3).contiguous().transpose(2, 3)  # neither layout: a contiguous copy
    out, grads = fused(p)
    assert out.is_contiguous()
    torch.testing.assert_close((out, grads), plain(p))


def test_large_means_do_not_cancel():
    p = random_problem((2, 3, 8, 8), steps=4, kind="lif", dtype=torch.float32)
    p.x += 3e3
    got, _ = fused(p)
    expected, _ = plain(p.to(torch.float64))
    safe = (margin(p.to(torch.float64)) > 1e-3).repeat(4, 1, 1, 1)
    assert torch.equal(got[safe].double(), expected[safe])


@pytest.mark.parametrize("frozen", ["weight", "bias", "conv_bias", "x"])
def test_gradients_of_a_part(host, frozen):
    p = random_problem(
        (2, 4, 3, 3), steps=4, kind="lif", dtype=torch.float64, training=False, conv_bias=True
    )
    _, everything = fused(p)
    leaves = p.differentiable
    leaves[frozen] = leaves[frozen].detach()
    options = dict(table=table(p), steps=4) | p.neuron
    given = {k: leaves[k] for k in ("weight", "bias", "conv_bias")}
    (out,) = ops.bn_neuron(leaves["x"], **given, **options)
    wanted = {k: v for k, v in leaves.items() if v.requires_grad}
    grads = torch.autograd.grad(out, wanted.values(), p.grad)
    for name, gradient in zip(wanted, grads, strict=True):
        torch.testing.assert_close(gradient, everything[name])


@pytest.mark.parametrize(
    "options",
    [
        dict(kind="lif", residual=True, conv_bias=True),
        dict(kind="plif", steps=16, pool=True, repeated=True, last=True),
        dict(kind="lif", last=True, training=False, affine=False),
    ],
    ids=["plain", "pooled", "fixed"],
)
def test_opcheck(options):
    p = random_problem((2, 4, 5, 6), dtype=torch.float32, **dict(steps=4) | options)
    leaves = p.differentiable
    parameters = p.weight, p.bias, p.conv_bias
    mean, var = ([t.clone()] for t in (p.running_mean, p.running_var))
    batches = [torch.tensor(3)]
    training = (p.x, *parameters, mean, var, batches, p.eps, 0.1, 2)
    torch.library.opcheck(ops.batch_norm, training)
    torch.library.opcheck(ops.fixed_norm, (*parameters, mean, var, p.eps))
    constants = (table(p), p.neuron.get("reciprocal_tau"), 0.8, -0.1, 3.0, "sigmoid")
    constants += (p.steps, p.repeated, p.pool, p.training, 1, 1)
    names = ("x", "weight", "bias", "conv_bias", "residual", "learned")
    torch.library.opcheck(ops.bn_neuron_op, (*map(leaves.get, names), *constants))
    saved = (p.x, constants[0], None, p.learned)
    for needed in (True, False):
        torch.library.opcheck(ops.bn_neuron_backward_op, ([p.grad], *saved, *constants[1:], needed))


@pytest.mark.parametrize("heads", [1, 2])
def test_opcheck_of_three_shares(host, heads):
    y = torch.randn(8, 12, 3, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.rand(2, 12) + 0.5
    running = ([torch.rand(4) for _ in range(3)] for _ in range(2))
    batches = [torch.tensor(i) for i in range(3)]
    norm = (y.detach(), weight, bias, None, *running, batches, 1e-5, 0.1, 1)
    torch.library.opcheck(ops.batch_norm, norm)
    made = ops.batch_norm(*norm)
    constants = (0.5, 1.0, 0.0, 4.0, "sigmoid", 4, False, False, True, 3, heads)
    torch.library.opcheck(ops.bn_neuron_op, (y, weight, bias, None, None, None, made, *constants))
    shape = (8, 2, 12, 2) if heads == 2 else (8, 4, 3, 4)
    grads = [torch.randn(shape) for _ in range(3)]
    torch.library.opcheck(
        ops.bn_neuron_backward_op, (grads, y.detach(), made, None, None, *constants, True)
    )


def test_a_second_derivative_is_refused():
    p = random_problem((2, 4, 5, 6), steps=4, kind="lif", dtype=torch.float64)
    x = p.x.clone().requires_grad_()
    (y,) = ops.bn_neuron(x, steps=4, reciprocal_tau=0.5)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


def test_refuses_more_than_it_can_index():
    shape = launch.Shape((1, 2**16, 2**8, 2**7), False, torch.float64)
    with pytest.raises(ValueError, match=r"2\^31 - 1 values per time step"):
        launch.plan(shape, "dense", aligned=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("last", "repeats"), [(False, 1), (True, 4)])
@pytest.mark.parametrize(
    "shape", [(5, 8, 6, 10), (3, 7, 5, 3), (70, 3, 1, 1), (2, 4, 1, 9), (1, 1, 1, 2)], ids=str
)
def test_statistics(host, shape, last, repeats, dtype):
    """Of channels with means from 0 to 1000 standard deviations, one of them constant."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(shape, generator=generator, dtype=torch.float64)
    y[:, 0] *= torch.logspace(-2, 1, shape[0], dtype=torch.float64)[:, None, None]
    if shape[1] > 2:
        y[:, 1], y[:, 2] = y[:, 1] + 1000, -3.0
    layout = torch.channels_last if last else torch.contiguous_format
    y = y.to(dtype).contiguous(memory_format=layout)
    parameters = weight, bias, conv_bias = torch.randn(3, shape[1]).to(membrane_dtype(dtype))
    zero, one, batches = torch.zeros_like(bias), torch.ones_like(bias), torch.tensor(6)
    made = ops.batch_norm(y, *parameters, [zero], [one], [batches], 1e-5, 1.0, repeats)
    center, scale, shift, invstd = made
    assert host.launched == ["moments", "batch_norm"]
    assert batches == 7
    variance, expected = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    unbiased = y.double().repeat(repeats, 1, 1, 1).var((0, 2, 3))
    unit = torch.finfo(center.dtype).eps
    close = partial(torch.testing.assert_close, rtol=1e3 * unit)
    torch.testing.assert_close(center.double(), expected, rtol=4 * unit, atol=20 * unit)
    torch.testing.assert_close(zero, center + conv_bias)  # running, with a momentum of 1
    close(one.double(), unbiased, atol=unit)
    close(invstd.double(), (variance + 1e-5).rsqrt(), atol=20 * unit)
    assert torch.equal(scale, weight * invstd)
    assert torch.equal(shift, bias)
    fixed = ops.fixed_norm(*parameters, [zero], [one], 1e-5)
    torch.testing.assert_close(fixed[0], zero - conv_bias)
    torch.testing.assert_close(fixed[3], (one + 1e-5).rsqrt())


def test_one_value_far_from_all_others_costs_the_variance_no_digits(host, monkeypatch):
    """It is the first that a thread reads, of many."""
    monkeypatch.setattr(launch, "REDUCING_BLOCKS", 1)
    launch.plan.cache_clear()
    y = torch.randn(1, 1, 128, 256, generator=torch.Generator().manual_seed(0))
    y[..., 0, 0] = 300.0
    invstd = ops.batch_norm(y, None, None, None, [], [], [], 0.0, 0.1, 1)[3]
    expected = y.double().var(correction=0).rsqrt()
    torch.testing.assert_close(invstd[0].double(), expected, rtol=5e-6, atol=0)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_blocks_as_on_a_gpu(monkeypatch, pool, last):
    """More parts of a sum than a block of the tables' has rows."""
    monkeypatch.setattr(loader, "BLOCK", 256)
    shape = (4, 8, 48, 80) if pool else (2, 8, 24, 40)
    agree(random_problem(shape, steps=4, kind="lif", dtype=torch.float32, last=last, pool=pool))
