"""Finding CuPy, saying what is missing, and launching as PyTorch would; CuPy itself is faked."""

import contextlib
import sys
import types

import numpy as np
import pytest
import torch

from qkformer.neurons import LIF, functional
from qkformer.neurons.cuda import loader

CUDA, CPU = torch.device("cuda", 1), torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh():
    caches = (loader._cupy_unavailable, loader._module, loader._kernel, functional._say_once)
    caches += (loader._external_stream,)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, PyTorch for CUDA 13 and a CuPy that records what it is asked."""

    def build(cuda="13.0", gpu=True, cupy_cuda=13020, nvrtc=13, newest=True):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        fake = FakeCupy(cupy_cuda, nvrtc, newest) if cupy_cuda else None
        monkeypatch.setitem(sys.modules, "cupy", fake)
        return fake

    return build


class FakeStream:
    def __init__(self, log, value):
        self.log, self.value = log, value

    def __enter__(self):
        self.log.append(("enter stream", self.value))

    def __exit__(self, *_):
        self.log.append(("exit stream", self.value))


class FakeCupy(types.ModuleType):
    def __init__(self, version, nvrtc, newest):
        super().__init__("cupy")
        self.log = []

        def nvrtc_version():
            if not nvrtc:
                raise RuntimeError("failed to load\n libnvrtc.so.13")
            return nvrtc, 0

        self.cuda = types.SimpleNamespace(
            runtime=types.SimpleNamespace(runtimeGetVersion=lambda: version),
            nvrtc=types.SimpleNamespace(getVersion=nvrtc_version),
            Device=self._device,
            Stream=types.SimpleNamespace(),
            ExternalStream=lambda ptr, index: FakeStream(self.log, (ptr, index)),
        )
        if newest:  # CuPy 14: a stream of the protocol, of the current device; the other warns
            self.cuda.ExternalStream = None
            self.cuda.Stream.from_external = self._from_external

    def _from_external(self, stream):
        version, pointer = stream.__cuda_stream__()
        assert version == 0
        return FakeStream(self.log, (pointer, self.current))

    @contextlib.contextmanager
    def _device(self, index):
        self.current = index
        self.log.append(("enter device", index))
        yield
        self.log.append(("exit device", index))

    def RawModule(self, code, options, backend):
        self.log.append(("compile", options))
        return types.SimpleNamespace(
            get_function=lambda name: lambda *args: self.log.append((name, args))
        )


@pytest.mark.parametrize(
    ("changed", "dtype", "device", "message"),
    [
        (dict(cuda=None), torch.float32, CUDA, "PyTorch is built without CUDA"),
        (dict(gpu=False), torch.float32, CUDA, "no CUDA device"),
        (dict(cupy_cuda=0), torch.float32, CUDA, r"pip install 'qkformer\[cuda13\]'"),
        (dict(cupy_cuda=0, cuda="12.8"), torch.float32, CUDA, r"qkformer\[cuda12\]"),
        (dict(cupy_cuda=12090), torch.float32, CUDA,
         r"CuPy is built for CUDA 12, PyTorch for CUDA 13.0: pip uninstall cupy-cuda12x.*cuda13"),
        (dict(cupy_cuda=12090, cuda="12.8"), torch.float32, CUDA,
         "compiler of CUDA 13, PyTorch is built for CUDA 12.8: pip uninstall nvidia-cuda-nvrtc"),
        (dict(nvrtc=None), torch.float32, CUDA,
         r"no compiler \(failed to load libnvrtc.so.13\): pip install 'cupy-cuda13x\[ctk\]'"),
        (dict(), torch.int32, CUDA, "float32, float16, bfloat16, float64, got int32"),
        (dict(), torch.float32, CPU, "tensor on cpu"),
    ],
)  # fmt: skip
def test_cupy_says_what_is_wrong_and_what_to_do(machine, changed, dtype, device, message):
    machine(**changed)
    with pytest.raises(RuntimeError, match=f"backend='cupy'.*{message}"):
        functional.resolve_backend("cupy", device, dtype)
    if changed:  # then no tensor is needed to know
        with pytest.raises(RuntimeError, match=message):
            LIF(backend="cupy")
    assert functional.resolve_backend("torch", device, dtype) == "torch"


def test_a_cache_that_cannot_be_written_is_named(machine, monkeypatch):
    """CuPy 14 makes the folder at import; if it is there but read-only, writing a kernel fails."""
    cupy = machine()

    def fail(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", "/root/.cupy")

    monkeypatch.setattr(cupy, "RawModule", fail)
    variant = loader.Variant("dense", torch.float16, "LIF", 4, 2)
    with pytest.raises(RuntimeError, match=r"keep .*/root/\.cupy.*set CUPY_CACHE_DIR"):
        loader._kernel("forward", variant)
    monkeypatch.setattr(loader.importlib, "import_module", fail)
    with pytest.warns(UserWarning, match=r"plain PyTorch: .*/root/\.cupy.*set CUPY_CACHE_DIR"):
        assert functional.resolve_backend("auto", CUDA, torch.float16) == "torch"


def test_nothing_is_compiled_while_a_cuda_graph_is_captured(machine, monkeypatch):
    cupy = machine()
    variant = loader.Variant("dense", torch.float16, "LIF", 4, 2)
    kernel = loader._kernel("forward", variant)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert loader._kernel("forward", variant) is kernel
    with pytest.raises(RuntimeError, match=r"kernel reduce cannot be compiled.*once before"):
        loader._kernel("reduce", variant)
    assert len(cupy.log) == 1


def test_auto_takes_cupy_where_it_runs_and_says_so_once(machine, caplog):
    machine()
    caplog.set_level("INFO", "qkformer")
    for _ in range(2):
        assert functional.resolve_backend("auto", CUDA, torch.float16) == "cupy"
    assert functional.resolve_backend("auto", CPU, torch.float16) == "torch"
    assert [record.message for record in caplog.records] == [
        "backend='auto': the neurons run in CuPy's kernels"
    ]


def test_auto_names_what_a_gpu_lacks_once(machine):
    machine(cupy_cuda=0)
    with pytest.warns(UserWarning, match="plain PyTorch: CuPy cannot be imported") as warned:
        for _ in range(2):
            assert functional.resolve_backend("auto", CUDA, torch.float16) == "torch"
    assert len(warned) == 1


@pytest.mark.parametrize("newest", [True, False], ids=["CuPy 14", "CuPy 13"])
@pytest.mark.parametrize(
    ("pointer", "given"), [(77, 77), (0, 1)], ids=["a stream", "the default stream"]
)
def test_launches_on_pytorchs_stream_and_device_and_compiles_once(
    machine, monkeypatch, newest, pointer, given
):
    """The default one by the name that CUPY_CUDA_PER_THREAD_DEFAULT_STREAM leaves alone."""
    cupy = machine(newest=newest)
    stream = types.SimpleNamespace(cuda_stream=pointer, device=CUDA)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    variant = loader.Variant("dense", torch.float16, "LIF", 4, 2)
    for blocks in (1, 2):
        loader.LAUNCHERS["cuda"].launch("forward", blocks, b"a struct", variant, CUDA)
    compiled = [value for what, value in cupy.log if what == "compile"]
    (options,) = compiled
    assert " ".join(options) == (
        "-std=c++17 -DDTYPE=FLOAT16 -DKIND=LIF -DSTEPS=4 -DVEC=2 -DBLOCK=256 -DSURROGATE=SIGMOID "
        "-DLAST=0 -DREPEATED=0 -DSPLITS=1"
    )
    around = [(what, value) for what, value in cupy.log if what not in ("compile", "forward")]
    once = [("enter device", 1), ("enter stream", (given, 1))]
    once += [(what.replace("enter", "exit"), value) for what, value in reversed(once)]
    assert around == once * 2
    calls = [args for what, args in cupy.log if what == "forward"]
    assert [args[:2] for args in calls] == [((1,), (256,)), ((2,), (256,))]
    for *_, (struct,) in calls:  # CuPy hands on an array of one element by value
        assert isinstance(struct, np.ndarray) and struct.size == 1
        assert struct.tobytes() == b"a struct"
