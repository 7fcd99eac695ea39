"""LIF, IF and PLIF: hand-worked, against the plain reference, and against SpikingJelly's."""

import copy
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate

from qkformer.neurons import IF, LIF, NEURONS, PLIF, reference

SPIKINGJELLY = {
    "lif": sj_neuron.LIFNode,
    "if": sj_neuron.IFNode,
    "plif": sj_neuron.ParametricLIFNode,
}


def run(neuron, x, grad, sequence=None):
    """Spikes, and the gradients of x and of the neuron's parameters."""
    x = x.clone().requires_grad_()
    spikes = (sequence or neuron)(x)
    return spikes, torch.autograd.grad(spikes, (x, *neuron.parameters()), grad)


def random_currents(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3
    return x.to(dtype), torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("neuron", "currents", "spikes"),
    [
        # h = .5, .5/2 + .75 = 1 (fires at the threshold), 1 (fires), .25, .125 - 1
        (LIF(), [1.0, 1.5, 2.0, 0.5, -2.0], [0, 1, 1, 0, 0]),
        # h = .5, .5 + .5 = 1 fires, 0 + .75, .75 + .25 = 1 fires, -3, -2
        (IF(), [0.5, 0.5, 0.75, 0.25, -3.0, 1.0], [0, 1, 0, 1, 0, 0]),
        # 1 / tau = 1 / 4: h = .5, .375 + .5, .65625 + .5 fires, 1 fires
        (LIF(tau=4.0), [2.0, 2.0, 2.0, 4.0], [0, 0, 1, 1]),
        # reset to -1: h = -1 + 1 = 0 (fires at 0), -1 + .5, -.5 + (1.5 - .5) / 2 = 0 fires
        (LIF(v_threshold=0.0, v_reset=-1.0), [2.0, 1.0, 1.5], [1, 0, 1]),
        # fires above 1 only: h = 1, .5 + .75 fires, 1
        (LIF(strict=True, decay_input=False), [1.0, 0.75, 1.0], [0, 1, 0]),
        # a spike takes 1 away: h = 1.5 fires, .75 + .25 = 1 fires, 0
        (IF(soft_reset=True, v_init=0.5), [1.0, 0.5, 0.0, 0.25, 0.0], [1, 1, 0, 0, 0]),
        # the threshold of attention's neurons: one spike in gives h = .5
        (LIF(v_threshold=0.5), [1.0, 0.0, 1.0, 0.5, 0.75], [1, 0, 1, 0, 1]),
    ],
    ids=["lif", "if", "lif-tau4", "lif-reset", "strict", "soft", "lif-half"],
)
def test_hand_worked_sequences(neuron, currents, spikes):
    x = torch.tensor(currents, dtype=torch.float64)[:, None]
    assert neuron(x).flatten().tolist() == spikes
    expected = reference.spike_sequence(
        x, **neuron.constants, **neuron.options, v_init=neuron.v_init
    )
    assert expected.flatten().tolist() == spikes


def test_hand_worked_gradient():
    """Two steps of LIF without a spike: the second reaches the first through the leak."""
    x = torch.tensor([[0.6], [0.8]], dtype=torch.float64, requires_grad=True)
    LIF()(x).sum().backward()
    h = torch.tensor([0.3, 0.55], dtype=torch.float64)
    sigmoid = torch.sigmoid(4 * (h - 1))
    slope = 4 * sigmoid * (1 - sigmoid)
    expected = [(slope[0] + 0.5 * slope[1]) / 2, slope[1] / 2]
    torch.testing.assert_close(x.grad.flatten(), torch.stack(expected))


@pytest.mark.parametrize("detach_reset", [True, False])
def test_gradient_through_the_reset_unless_detached(detach_reset):
    x = torch.tensor([[3.0], [0.0]], dtype=torch.float64, requires_grad=True)
    spikes = LIF(detach_reset=detach_reset)(x)
    (grad,) = torch.autograd.grad(spikes[1].sum(), x)
    assert spikes[0].item() == 1
    assert (grad[0].item() == 0) == detach_reset


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1, 3), (4, 2, 5, 7), (16, 33)], ids=str)
@pytest.mark.parametrize("slope", [("sigmoid", surrogate.Sigmoid), ("arctan", surrogate.ATan)])
@pytest.mark.parametrize("name", NEURONS)
def test_agrees_with_spikingjelly(name, slope, shape, dtype):
    ours = NEURONS[name](surrogate=slope[0]).to(dtype)
    theirs = SPIKINGJELLY[name](
        step_mode="m", detach_reset=True, surrogate_function=slope[1](alpha=ours.alpha)
    ).to(dtype)
    x, grad = random_currents(shape, dtype)
    spikes, grads = run(ours, x, grad)
    expected_spikes, expected_grads = run(theirs, x, grad)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, expected_spikes)
    for got, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, expected.reshape(got.shape), rtol=1e-4, atol=1e-5)
        if dtype == torch.float64:
            torch.testing.assert_close(got, expected.reshape(got.shape), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("v_reset", [0.0, 0.1])
@pytest.mark.parametrize("tau", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("name", NEURONS)
def test_inputs_on_the_threshold_fall_on_the_same_side(name, tau, v_reset, dtype):
    """Decimal currents reach the threshold up to rounding all the time."""
    times = {"lif": {"tau": tau}, "if": {}, "plif": {"init_tau": tau}}[name]
    ours = NEURONS[name](v_reset=v_reset, **times).to(dtype)
    theirs = SPIKINGJELLY[name](step_mode="m", v_reset=v_reset, **times).to(dtype)
    single = copy.deepcopy(ours)
    single.step_mode = "s"
    generator = torch.Generator().manual_seed(0)
    x = (torch.randint(-5, 25, (16, 20_000), generator=generator) / 10).to(dtype)
    spikes = ours(x)
    assert torch.equal(spikes, torch.stack([single(current) for current in x]))
    if name != "lif" or tau == 2.0:  # theirs divides by tau, which is not to multiply by 1 / tau
        assert torch.equal(spikes, theirs(x))


@pytest.mark.parametrize("T", [1, 2, 4, 7, 32])
@pytest.mark.parametrize(
    "neuron",
    [LIF(), LIF(tau=3.0, v_threshold=0.5), LIF(v_reset=-0.3, alpha=2.0), LIF(tau=1.0), IF(),
     PLIF(), PLIF(init_tau=5.0, v_threshold=0.7, v_reset=0.1), IF(surrogate="arctan"),
     PLIF(surrogate="arctan", alpha=1.5, v_threshold=0.6)],
    ids=["lif", "lif-tau3", "lif-reset", "lif-tau1", "if", "plif", "plif-tau5", "if-arctan",
         "plif-arctan"],
)  # fmt: skip
def test_agrees_with_the_reference(neuron, T):
    neuron = copy.deepcopy(neuron).double()
    x, grad = random_currents((T, 3, 11), seed=T)

    def plain(x):
        return reference.spike_sequence(x, **neuron.constants)

    spikes, grads = run(neuron, x, grad)
    expected_spikes, expected_grads = run(neuron, x, grad, plain)
    assert torch.equal(spikes, expected_spikes)
    for got, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NEURONS)
def test_sixteen_bit_inputs_are_integrated_in_float32(name, dtype):
    x, grad = random_currents((16, 200), dtype)
    neuron = NEURONS[name]()
    spikes, (grad_x, *_) = run(neuron, x, grad)
    expected_spikes, (expected_grad_x, *_) = run(neuron, x.float(), grad.float())
    assert spikes.dtype == grad_x.dtype == dtype
    assert torch.equal(spikes.float(), expected_spikes)
    assert torch.equal(grad_x, expected_grad_x.to(dtype))


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 1e30])
@pytest.mark.parametrize("name", NEURONS)
def test_extreme_inputs_pass_as_in_the_reference(name, value):
    x, _ = random_currents((6, 5), torch.float32)
    x[2, 1] = value
    neuron = NEURONS[name]()
    expected = reference.spike_sequence(x, reciprocal_tau=neuron.reciprocal_tau)
    assert torch.equal(neuron(x), expected)


@pytest.mark.parametrize("name", NEURONS)
def test_multi_step_leaves_no_state(name):
    neuron = NEURONS[name]()
    x, _ = random_currents((4, 10), torch.float32)
    first = neuron(x)
    assert torch.equal(neuron(x), first)
    assert neuron.v == 0.0
    assert neuron(x[:, :3]).shape == (4, 3)  # another shape needs no reset either


@pytest.mark.parametrize(
    "options",
    [{}, {"surrogate": "arctan"}, {"surrogate": "triangle", "strict": True, "detach_reset": False},
     {"soft_reset": True, "v_init": 0.3}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", NEURONS)
def test_single_steps_equal_one_multi_step_call(name, options):
    neuron = NEURONS[name](v_reset=-0.2, **options).double()
    x, grad = random_currents((6, 4, 5))

    def steps(x):
        return torch.stack([single(current) for current in x])

    spikes, grads = run(neuron, x, grad)
    single = copy.deepcopy(neuron)
    single.step_mode = "s"
    single_spikes, single_grads = run(single, x, grad, steps)
    assert torch.equal(spikes, single_spikes)
    for got, expected in zip(grads, single_grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_single_step_keeps_state_until_reset_net():
    neuron = LIF(step_mode="s")
    x = torch.full((2, 3), 1.5)
    assert neuron(x).sum() == 0  # h = .75
    assert torch.equal(neuron.v, torch.full((2, 3), 0.75))
    assert neuron(x).sum() == 6  # h = 1.125
    neuron(x)
    with pytest.raises(ValueError, match="reset_net"):
        neuron(x[:1])
    sj_functional.reset_net(neuron)
    assert neuron.v == 0.0
    assert neuron(x[:1]).sum() == 0


def test_a_change_of_mode_leaves_no_state():
    neuron = LIF(step_mode="s")
    neuron(torch.full((3,), 1.5))
    neuron.step_mode = "m"
    assert neuron.v == 0.0
    assert neuron(torch.ones(2, 3)).shape == (2, 3)


def test_set_step_mode_reaches_the_neuron():
    net = torch.nn.Sequential(LIF())
    sj_functional.set_step_mode(net, "s")
    assert net[0].step_mode == "s"
    assert net(torch.ones(3)).shape == (3,)


def test_keeps_nothing_but_its_input_for_backward():
    kept = []
    x = torch.randn(8, 100, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        LIF()(x)
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


def test_strided_and_expanded_inputs():
    x, _ = random_currents((5, 6, 4, 3))
    for view in (x.transpose(1, 2), x[:, ::2], x[:1].expand(7, -1, -1, -1)):
        assert torch.equal(LIF()(view), LIF()(view.contiguous()))


@pytest.mark.parametrize("options", [{}, {"strict": True, "surrogate": "triangle"}], ids=str)
@pytest.mark.parametrize("name", NEURONS)
def test_copies_and_pickles(name, options):
    neuron = NEURONS[name](v_threshold=0.8, **options)
    x, _ = random_currents((4, 9), torch.float32)
    for twin in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert torch.equal(twin(x), neuron(x))
        assert repr(twin) == repr(neuron)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LIF(backend="coda"), ValueError, "backend must be one of"),
        (lambda: LIF(backend="troch"), ValueError, "did you mean 'torch'"),
        (lambda: LIF(v_threshold=0.0), ValueError, "v_threshold"),
        (lambda: LIF(tau=0.5), ValueError, "tau"),
        (lambda: PLIF(init_tau=1.0), ValueError, "init_tau"),
        (lambda: IF(alpha=0.0), ValueError, "alpha"),
        (lambda: IF(step_mode="x"), ValueError, "step_mode"),
        (lambda: IF(surrogate="atan"), ValueError, "surrogate must be one of"),
        (lambda: LIF()(torch.tensor(1.0)), ValueError, r"\[T, \.\.\.\]"),
        (lambda: LIF()(torch.ones(0, 3)), ValueError, r"\(0, 3\)"),
        (lambda: LIF()(torch.ones(2, 3, dtype=torch.int64)), ValueError, "int64"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_triangle_and_undetached_reset_by_hand():
    """Two steps of ``h = v / 2 + x``: 1.25 fires (slope .75), then .5 (slope .5)."""
    neuron = LIF(surrogate="triangle", strict=True, detach_reset=False, decay_input=False)
    x = torch.tensor([[1.25], [0.5]], dtype=torch.float64, requires_grad=True)
    spikes = neuron(x)
    assert spikes.flatten().tolist() == [1, 0]
    (grad,) = torch.autograd.grad(spikes[1].sum(), x)
    # dv0/dx0 = (1 - s) - h * slope = -1.25 * .75; dh1/dv0 = .5
    assert grad.flatten().tolist() == [0.5 * 0.5 * -1.25 * 0.75, 0.5]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NEURONS)
def test_gpu_agrees_with_cpu(name, dtype):
    x, grad = random_currents((8, 1000), dtype)
    neuron = NEURONS[name]()
    spikes, grads = run(neuron, x, grad)
    gpu_spikes, gpu_grads = run(neuron.cuda(), x.cuda(), grad.cuda())
    assert torch.equal(gpu_spikes.cpu(), spikes)
    for got, expected in zip(gpu_grads, grads, strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-2, atol=1e-2)
