"""What benchmarks know of GPUs, proven without one: rows, ceilings, energy, launches."""

import importlib
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qkformer.layers import ConvBNNeuron
from qkformer.neurons import LIF

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def module(name: str):
    return importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize(
    "step, last",
    [("training_step", "channels_last, with AdamW"), ("inference_step", "folded, channels_last")],
)
def test_a_gpu_has_rows_of_its_own(step, last):
    networks = module("networks")
    names = {}
    for device in ("cpu", "cuda"):
        setting = networks.Setting("qkformer_10_384", 224, 1, "fp16", torch.device(device))
        options = dict(compiled=False, folded=step == "inference_step")
        made = module("contenders").contenders(setting, getattr(networks, step), **options)
        names[device] = [contender.name for contender in made]
        graphs = [contender.graphed for contender in made]
        assert graphs == sorted(graphs), "what holds a graph's memory comes last"
        assert any(graphs) == (device == "cuda")
    assert f"ours, torch, {last}" in names["cpu"]
    assert sum("cupy" in name for name in names["cpu"]) == 1
    assert {f"ours, cupy, {last}", f"ours, cupy, {last}, CUDA graph"} <= set(names["cuda"])
    peer_graph = names["cuda"][-1]  # the largest gives way first
    assert peer_graph.startswith("SpikingJelly") and peer_graph.endswith("CUDA graph")


def test_a_graph_gives_way_to_what_does_not_fit_beside_it():
    measure = module("measure")

    class Full:
        """Runs out of memory in its second call, as long as the graph is there."""

        def __init__(self):
            self.calls = 0

        def __call__(self):
            self.calls += 1
            if self.calls == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    contenders = [
        measure.Contender("small", lambda: lambda: None),
        measure.Contender("full", Full),
        measure.Contender("graph", lambda: lambda: None, graphed=True),
    ]
    rows = measure.compare(contenders, torch.device("cpu"), repeats=2, items=1, memory=False)
    assert ["seconds" in row for row in rows] == [True, True, False]
    assert rows[2]["not_measured"] == "CUDA out of memory."


class Board:
    """NVML of a GPU that takes half a joule per step."""

    class NVMLError(Exception):
        pass

    def __init__(self, known: bool):
        self.known = known
        self.millijoules = 123456
        self.nvmlInit = self.nvmlShutdown = lambda: None

    def step(self):
        self.millijoules += 500

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if not self.known:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        assert handle == "GPU-1234"
        return self.millijoules


@pytest.mark.parametrize("known, joules", [(True, 0.5), (False, None)])
def test_energy_is_that_of_the_board_per_step(monkeypatch, known, joules):
    board, gpu = Board(known), SimpleNamespace(uuid="1234")
    monkeypatch.setitem(sys.modules, "pynvml", board)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    taken = module("energy").joules(board.step, torch.device("cuda"), at_least=0.001)
    assert taken == joules


# images/s unfused and fused, of the table of reference/performance.md
H200 = {
    "qkformer_10_384": (1169, 2107),
    "qkformer_10_512": (828, 1431),
    "qkformer_10_768": (494, 792),
    "qkformer_4_384": (6105, 9973),
    "qkformer_2_256": (3408, 5651),
}
V100 = {"qkformer_10_384": (232, 400), "qkformer_10_768": (93, 142)}


@pytest.mark.parametrize("gpu, table", [("NVIDIA H200", H200), ("Tesla V100-SXM2-32GB", V100)])
def test_ceilings_are_those_of_the_reference(gpu, table):
    roofline = module("roofline")
    for model, (unfused, fused) in table.items():
        ceiling = partial(roofline.images_per_second, model, roofline.known(gpu))
        assert ceiling(fused=False) == pytest.approx(unfused, rel=0.001, abs=0.6)
        assert ceiling(fused=True) == pytest.approx(fused, rel=0.005)


def test_ceilings_are_for_published_models_and_scale_with_the_bandwidth():
    roofline = module("roofline")
    h200, h100 = roofline.known("NVIDIA H200"), roofline.known("NVIDIA H100 80GB HBM3")
    share = roofline.share
    reached = roofline.images_per_second("qkformer_10_384", h200)
    assert share("qkformer_10_384", 224, 4, h200, reached) == 1
    assert 1.2 < share("qkformer_10_384", 224, 4, h100, reached) < 4.3 / 3.0
    assert share("qkformer_10_384", 224, 1, h200, reached) is None
    assert share("maxformer_10_384", 224, 4, h200, reached) is None
    assert roofline.known("NVIDIA GeForce RTX 4090") is None
    assert roofline.known("NVIDIA A100-SXM4-80GB").source.startswith("vendor")


def test_the_bandwidth_of_a_copy_counts_what_is_read_and_written():
    roofline = module("roofline")
    cpu, size = torch.device("cpu"), 2**22
    source, target = torch.empty(2, size, dtype=torch.uint8)
    seconds = roofline.median_seconds(lambda: target.copy_(source), cpu)
    measured = roofline.copy_bandwidth(cpu, size)
    assert 0.05 < measured / (2 * size / seconds) < 20


def test_a_report_names_what_the_gpu_gave():
    found = {"gpu": {"name": "NVIDIA H100 80GB HBM3", "bandwidth": 2.9e12, "throughput": 7.8e14,
                     "source": "measured in the same run"}}  # fmt: skip
    line = module("report").bounds(found)
    assert "2.90 TB/s and 780 TFLOP/s" in line
    assert "3.00 TB/s and 798 TFLOP/s (measured" in line


def test_launches_of_a_layer():
    """As its code reads: a convolution, statistics, neuron; backward the same and a gradient."""
    launches, null = module("launches"), module("null_launcher")
    with null.null_launcher("meta") as launcher:
        with torch.device("meta"):
            layer = ConvBNNeuron(8, 8, neuron=LIF(backend="cupy"))
            x = torch.empty(4, 16, 8, 8, 8, requires_grad=True)
        with launches.Launches() as counting, launches.Autocast():
            layer(x).sum().backward()
    assert launcher.launched["forward"] == launcher.launched["backward"] == 1
    assert counting.counted["convolution"] == 1
    assert counting.counted["convolution_backward"] == 2  # of the input and of the weight
    assert counting.counted["_to_copy"] == 4  # input and weight to 2 bytes, gradients back
    assert "view" not in counting.counted and "empty_like" not in counting.counted


def test_launches_of_a_step_are_as_the_readme_says(capsys):
    module("launches").main(["--model", "qkformer_4_384", "qkformer_2_256"])
    printed = capsys.readouterr().out
    _, _, *rows, small, of_pytorch = [line for line in printed.splitlines() if "4_384:" not in line]
    readme = module("report").README.read_text().splitlines()
    assert all(row in readme for row in rows), printed
    assert "1 qk_mask_backward" in small and "16 convolution" in of_pytorch
