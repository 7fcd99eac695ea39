"""Neurons in the kernels' own source, compiled by g++, against the reference in PyTorch."""

import pytest
import torch

from qkformer.neurons import IF, LIF, PLIF, functional, reference
from qkformer.neurons.cuda import loader, ops

DTYPES = tuple(loader.DTYPES)
NEURONS = {
    "if": IF(v_threshold=0.9, v_reset=-0.1),
    "lif": LIF(tau=1.7),
    "plif": PLIF(init_tau=2.6, v_reset=0.2, alpha=3.0),
    "arctan": PLIF(init_tau=2.6, surrogate="arctan"),
}
# T, neuron, shape of a step: packs of 4, 2 or 1; unrolled or not; more neurons than a block
CASES = [
    (1, "if", (5, 7)),
    (2, "plif", (1,)),
    (4, "lif", (3, 2, 6)),
    (4, "lif", (37, 23)),
    (4, "arctan", (5, 8)),
    (7, "if", (2, 4, 8)),
    (16, "plif", (2, 3, 5, 4)),
    (32, "lif", (301,)),
    (40, "plif", (2, 11)),
]


def constants(neuron, dtype):
    values = neuron.constants
    if isinstance(values["reciprocal_tau"], torch.Tensor):
        tau = values["reciprocal_tau"].detach().to(reference.membrane_dtype(dtype))
        values["reciprocal_tau"] = tau
    return values


def run(function, x, grad, constants):
    """Spikes, gradient of x, and of 1 / tau where that is learned."""
    x = x.detach().requires_grad_()
    tau = constants["reciprocal_tau"]
    learned = isinstance(tau, torch.Tensor)
    if learned:
        tau = tau.detach().clone().requires_grad_()
    spikes = function(x, **constants | {"reciprocal_tau": tau})
    return spikes, torch.autograd.grad(spikes, (x, tau) if learned else (x,), grad)


def currents(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return (1.5 * x + 0.3).to(dtype), grad.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "name", "shape"), CASES)
def test_agrees_with_the_reference(host, T, name, shape, dtype):
    x, grad = currents((T, *shape), dtype, seed=T)
    values = constants(NEURONS[name], dtype)
    spikes, grads = run(ops.neuron, x, grad, values)
    expected, expected_grads = run(reference.spike_sequence, x, grad, values)
    assert host.launched == [
        "forward",
        *(["reduce", "gradients"] if name in ("plif", "arctan") else []),
        "backward",
    ]
    assert spikes.dtype == dtype
    assert torch.equal(spikes, expected)  # the same operations in the same order: no tolerance
    unit = torch.finfo(reference.membrane_dtype(dtype)).eps
    for got, exact in zip(grads, expected_grads, strict=True):
        assert got.dtype == exact.dtype
        tolerance = max(torch.finfo(got.dtype).eps, unit * 8)
        torch.testing.assert_close(
            got, exact, rtol=tolerance, atol=50 * unit * exact.abs().max().item()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NEURONS)
def test_subnormal_numbers_taken_for_zero_move_no_spike(host, name, dtype):
    """CuPy's compiler takes them so (-ftz=true), PyTorch does not."""
    x, grad = currents((16, 5000), torch.float64)
    x = torch.where(torch.rand(x.shape) < 0.5, x, x * 1e-39).to(dtype)
    values = constants(NEURONS[name], dtype)
    expected, expected_grads = run(reference.spike_sequence, x, grad.to(dtype), values)
    assert torch.set_flush_denormal(True), "this processor cannot"
    try:
        spikes, grads = run(ops.neuron, x, grad.to(dtype), values)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(spikes, expected)
    tolerance = max(torch.finfo(dtype).eps, 1e-5)
    for got, exact in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, exact, rtol=tolerance, atol=1e-5 * exact.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NEURONS)
def test_inputs_on_the_threshold_fall_on_the_same_side(host, name, dtype):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randint(-5, 25, (16, 20_000), generator=generator) / 10).to(dtype)
    values = constants(NEURONS[name], dtype)
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)
    spikes, grads = run(ops.neuron, x, grad, values)
    expected, expected_grads = run(reference.spike_sequence, x, grad, values)
    assert torch.equal(spikes, expected)
    for got, exact in zip(grads, expected_grads, strict=True):  # backward resets where forward did
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 6e4])
def test_extreme_values_pass_as_in_the_reference(host, value, name, dtype):
    T = {"if": 7, "lif": 4, "plif": 16, "arctan": 4}[name]
    x, grad = currents((T, 5), dtype)
    x[1, 1] = x[0, 2] = value
    grad[2, 3] = value
    values = constants(NEURONS[name], dtype)
    spikes, grads = run(ops.neuron, x, grad, values)
    expected, expected_grads = run(reference.spike_sequence, x, grad, values)
    assert torch.equal(spikes, expected)
    for got, exact in zip(grads, expected_grads, strict=True):
        finite = exact.isfinite()  # autograd's inf - inf / tau is NaN where ours is inf
        assert torch.equal(got.isfinite(), finite)
        torch.testing.assert_close(got[finite], exact[finite], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("T", [4, 16])
def test_any_memory_layout(host, T):
    """Unaligned, strided, expanded, channels last: the same spikes and gradients."""
    base, grad = currents((T, 2, 4, 3, 6), torch.float32)
    unaligned = torch.cat([torch.zeros(1), base.flatten()])[1:].view(base.shape)
    last = base.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    views = (unaligned, last, base.transpose(3, 4), base[:, :, ::2], base[:1].expand(base.shape))
    values = constants(LIF(), torch.float32)
    for x in views:
        g = grad[:, :, : x.shape[2]].reshape(x.shape)
        for gradient in (g, g.transpose(1, 2).contiguous().transpose(1, 2), g[:1].expand(x.shape)):
            spikes, (got,) = run(ops.neuron, x, gradient, values)
            expected, (exact,) = run(reference.spike_sequence, x, gradient, values)
            assert torch.equal(spikes, expected)
            torch.testing.assert_close(got, exact)
    assert ops.neuron(last, **values).stride() == last.stride()  # no copies around the kernel
    once = base[:1].expand(base.shape)
    with torch.no_grad():
        assert torch.equal(ops.neuron(once, **values), reference.spike_sequence(once, **values))


def test_modules_take_the_kernels_and_keep_nothing_but_their_input(host):
    kept = []
    x = torch.randn(4, 100, requires_grad=True)
    for backend in ("auto", "cupy"):
        host.launched.clear()
        kept.clear()
        neuron = LIF(backend=backend)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            neuron(x).sum().backward()
        assert host.launched == ["forward", "backward"]
        assert [t.data_ptr() for t in kept] == [x.data_ptr()]
    host.launched.clear()
    LIF(backend="torch")(x)
    assert not host.launched


@pytest.mark.parametrize(
    "options",
    [{"strict": True}, {"decay_input": False}, {"v_init": 0.5}, {"surrogate": "triangle"}],
)
def test_what_the_kernels_do_not_know_runs_without_them_or_is_refused(host, options):
    LIF(**options)(torch.ones(4, 10))
    assert not host.launched
    with pytest.raises(RuntimeError, match=f"no kernels for LIF with {next(iter(options))}="):
        LIF(backend="cupy", **options)


def test_plif_learns_through_the_kernels(host):
    x, grad = currents((4, 50), torch.float64)
    ours, theirs = (PLIF(backend=name).double() for name in ("cupy", "torch"))
    for neuron in (ours, theirs):
        neuron(x).backward(grad)
    torch.testing.assert_close(ours.w.grad, theirs.w.grad)


@pytest.mark.parametrize("shape", [(4, 0), (3, 2, 0, 5)], ids=str)
def test_no_neurons_no_launch(host, shape):
    x = torch.zeros(shape, requires_grad=True)
    spikes = LIF()(x)
    spikes.sum().backward()
    assert spikes.shape == x.grad.shape == x.shape
    assert not host.launched


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_opcheck(host, learned, dtype):
    x = currents((4, 1, 1, 12), dtype)[0].requires_grad_()
    real = reference.membrane_dtype(dtype)
    tau = torch.tensor(0.4, dtype=real, requires_grad=True) if learned else None
    neuron = (None if learned else 0.5, 1.0, 0.0, 4.0, "sigmoid")
    rest = (4, False, False, False, 1, 1)  # steps, repeated, pool, batch_statistics, splits, heads
    none = (None,) * 4
    torch.library.opcheck(ops.bn_neuron_op, (x, *none, tau, None, *neuron, *rest))
    grad = torch.randn_like(x)
    inputs = ([grad], x.detach(), None, None, tau.detach() if learned else None, *neuron, *rest)
    torch.library.opcheck(ops.bn_neuron_backward_op, (*inputs, learned))


def test_compiles_without_graph_breaks(host):
    neuron = PLIF().double()
    x, grad = currents((4, 30), torch.float64)
    compiled = torch.compile(neuron, backend="aot_eager", fullgraph=True)
    for sequence in (x, currents((7, 12), torch.float64)[0]):
        assert torch.equal(compiled(sequence), neuron(sequence))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x), neuron.w, grad),
        torch.autograd.grad(neuron(x), neuron.w, grad),
    )


@pytest.mark.parametrize("backend", ["auto", "cupy", "torch"])
def test_resolves_backends(host, backend):
    cpu = torch.device("cpu")
    expected = "torch" if backend == "torch" else "cupy"
    assert functional.resolve_backend(backend, cpu, torch.float16) == expected
