"""The kernels on a GPU, compiled by CuPy: what the tests beside this one prove of their source."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_model
from fused_reference import agree, random_problem
from mask_reference import mask_problem, masks_agree
from published import GOLDEN, PUBLISHED, published_input, published_state

import qkformer
from qkformer.checkpoint.released import released_names
from qkformer.layers import ConvBNNeuron
from qkformer.neurons import LIF, NEURONS, PLIF, reference
from qkformer.neurons.cuda import loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.is_available() and bool(loader.unavailable()), reason=str(loader.unavailable())
    ),
]
DTYPES = tuple(loader.DTYPES)


@pytest.fixture(autouse=True)
def full_precision():
    """TF32 would move convolutions' outputs, and with them spikes, between backends."""
    with torch.backends.cudnn.flags(
        enabled=True, allow_tf32=False, deterministic=True, benchmark=False
    ):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", [1, 4, 16, 32, 40])
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_agree_with_the_reference(name, T, dtype):
    neuron = NEURONS[name](backend="cupy").cuda().to(reference.membrane_dtype(dtype))
    x = (1.5 * torch.randn(T, 1001, dtype=torch.float64, device="cuda") + 0.3).to(dtype)
    grad = torch.randn_like(x)
    results = []
    for plain in (False, True):
        leaf = x.clone().requires_grad_()
        tau = neuron.reciprocal_tau
        y = reference.spike_sequence(leaf, reciprocal_tau=tau) if plain else neuron(leaf)
        results.append((y, *torch.autograd.grad(y, (leaf, *neuron.parameters()), grad)))
    (y, *grads), (y_, *grads_) = results
    assert torch.equal(y, y_)
    last_place = torch.finfo(dtype).eps
    for got, expected in zip(grads, grads_, strict=True):
        torch.testing.assert_close(got, expected, rtol=2 * last_place + 1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("steps", [4, 40])
def test_fused_kernels_agree_with_the_modules(steps, pool, last, dtype):
    shapes = {
        (3, 24, 14, 14): False,
        (4, 96, 28, 28): False,
        (2, 8, 9, 7): False,
        (2, 5, 9, 7): True,
    }
    for shape, repeated in shapes.items():
        p = random_problem(
            shape, steps=steps, kind="plif", dtype=dtype, last=last, repeated=repeated, pool=pool
        )
        agree(p.to("cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(8, 192, 14, 14), (2, 96, 56, 56), (3, 10, 7, 7)], ids=str)
@pytest.mark.parametrize(("T", "heads"), [(4, 2), (4, None), (16, None), (40, None)])
def test_masks_agree_with_their_steps(T, heads, shape, last, dtype):
    tensors = mask_problem((T, *shape), heads, last=last, dtype=dtype)
    masks_agree(tuple(x.cuda() for x in tensors), heads, 0.5 if T == 4 else "learned")


@pytest.mark.parametrize(
    "case", ["cifar10_hst_4_384", "cifar10dvs_hst_2_256", "maxformer__cifar10"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-2)])
def test_golden(case, dtype, tolerance):
    """In float32 a few spikes on the threshold fall otherwise."""
    golden = np.load(GOLDEN / f"{case}.seed0.npz")
    key = "fixed.eval.logits" if "_hst_" in case else "eval.logits"
    B, T, size = (int(golden[k]) for k in ("B", "T", "res"))
    name, options = PUBLISHED[case]
    model = qkformer.create_model(name, T=T, backend="cupy", **options).double().eval()
    state, shapes = published_state(case), model.state_dict()
    model.load_state_dict(
        {k: state[name].reshape(shapes[k].shape) for k, (name, _) in released_names(model).items()}
    )
    x = published_input(case, 0, B, T, size)
    with torch.no_grad():
        logits = model.to("cuda", dtype)(x.to("cuda", dtype)).double().cpu().numpy()
    assert np.abs(logits - golden[key]).max() <= tolerance * np.abs(golden[key]).max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", sorted(qkformer.list_models()))
def test_a_training_step_of_every_model(name, layout):
    size = 64 if "_10_" in name or "_8_" in name else 32
    models = [make_model(name, backend=b).cuda().train() for b in ("cupy", "torch")]
    models[0].to(memory_format=layout)
    x = torch.randn(2, models[0].in_chans, size, size, dtype=torch.float64, device="cuda")
    for model in models:
        model(x).square().sum().backward()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(*(model.state_dict() for model in models))


def layer(**options) -> ConvBNNeuron:
    torch.manual_seed(0)
    return ConvBNNeuron(3, 16, 3, neuron=PLIF(backend="cupy"), **options).cuda()


@pytest.mark.parametrize("pool", [None, "before"])
def test_compiles(pool):
    """In float64: Inductor may give a convolution another layout, which rounds otherwise."""
    plain, compiled = layer(pool=pool).double(), layer(pool=pool).double()
    compiled.compile(fullgraph=True)
    x = torch.randn(4, 2, 3, 8, 8, dtype=torch.float64, device="cuda")
    for module in (plain, compiled):
        module(x).square().sum().backward()
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_cuda_graph():
    module, x = layer(), torch.randn(4, 2, 3, 8, 8, device="cuda")
    graphed = torch.cuda.make_graphed_callables(layer(), (x.clone().requires_grad_(),))
    for _ in range(2):
        x, grad = torch.randn_like(x), torch.randn(4, 2, 16, 8, 8, device="cuda")
        results = []
        for function in (graphed, module):
            leaf = x.clone().requires_grad_()
            y = function(leaf)
            results.append((y, *torch.autograd.grad(y, leaf, grad)))
        assert torch.equal(results[0][0], results[1][0])
        torch.testing.assert_close(results[0][1], results[1][1])


def test_a_folded_model_as_a_cuda_graph():
    options = dict(embed_dim=64, num_heads=2, T=4, backend="cupy")
    model = qkformer.fuse_for_inference(make_model("qkformer_4_384", **options)).cuda()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, device="cuda")
    with torch.inference_mode():
        expected = model(x)
        graphed = torch.cuda.make_graphed_callables(model, (torch.zeros_like(x),))
        torch.testing.assert_close(graphed(x), expected)


def test_two_streams():
    streams = [torch.cuda.Stream() for _ in range(2)]
    inputs = [torch.randn(8, 1 << 20, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    results = []
    for stream, x in zip(streams, inputs, strict=True):
        with torch.cuda.stream(stream):
            y = (x * 2).requires_grad_()  # here, so a kernel elsewhere would read it too early
            spikes = LIF(backend="cupy")(y)
            # in autograd's own thread, which goes to the stream of the forward pass
            results.append((spikes, *torch.autograd.grad(spikes.square().sum(), y)))
    torch.cuda.synchronize()
    for x, result in zip(inputs, results, strict=True):
        y = (x * 2).requires_grad_()
        spikes = LIF(backend="torch")(y)
        assert torch.equal(spikes, result[0])
        torch.testing.assert_close(result[1], torch.autograd.grad(spikes.square().sum(), y)[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_tensors_device():
    x = torch.randn(4, 100, device="cuda:1", requires_grad=True)
    results = []
    for backend in ("cupy", "torch"):
        y = LIF(backend=backend)(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    assert torch.cuda.current_device() == 0
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_two_processes():
    code = """
import torch
from qkformer.neurons import LIF
print(LIF(backend="cupy")(torch.full((4, 8), 1.5, device="cuda")).sum().item())
"""
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["16.0"] * 2
