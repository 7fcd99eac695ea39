"""Every benchmark in its smallest configuration, and tables that say what the results say."""

import importlib
import json
import shlex
import sys
import time
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from qkformer.layers import ConvBNNeuron
from qkformer.neurons import LIF

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TINY = "--size 32 --model_args '{embed_dim: 128, num_heads: 2, depths: [1, 1, 1]}' --no_memory"
ARGUMENTS = {
    "train": f"{TINY} --batch 2",
    "inference": f"{TINY} --precision bf16",
    "neuron": "--T 2 --shape 1,4,3,3",
    "attention": "--kinds QKTA SSA --dim 16 --heads 2 --side 4 --no_memory",
    "scaling": "--N 16 64 --T 2 --D 8 --B 1 --base 1,1,8,16 --no_plot --no_memory",
    "loader": "--images 8 --workers 0 1",
}
PEERS = {"train": 3, "inference": 2, "neuron": 1, "attention": 1}


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    """As `python -m benchmarks.train` finds them; and one thread as before behind it."""
    monkeypatch.syspath_prepend(str(ROOT))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def module(name: str):
    return importlib.import_module(f"benchmarks.{name}")


def run(name: str, folder: Path, arguments: str) -> dict:
    common = ["--device", "cpu", "--repeats", "2", "--results", str(folder)]
    module(name).main([*common, *shlex.split(arguments)])
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_measures_and_keeps_what_it_measured(name, tmp_path, capsys, monkeypatch):
    # a fresh process for every contender; see test_peak_memory_is_that_of_the_step
    monkeypatch.setattr(module("measure"), "cpu_peaks", lambda makes: [1.0] * len(makes))
    results = run(name, tmp_path, ARGUMENTS[name])
    printed = capsys.readouterr().out
    assert results["machine"]
    for label, result in results[name].items():
        assert label in printed
        assert f"python -m benchmarks.{name} --device cpu" in result["command"]
        assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert {"date", "commit", "device", "threads", "platform", "load"} <= result.keys()
        rows = result["points" if name == "scaling" else "rows"]
        measured = [row for row in rows if "not_measured" not in row]
        assert {row["name"] for row in rows if row not in measured} <= {
            "ours, cupy",
            "ours, cupy, folded",
        }
        for row in measured:
            assert 0 < row["seconds"]["q1"] <= row["seconds"]["median"] <= row["seconds"]["q3"]
        if name in PEERS:
            check_comparison(measured, PEERS[name], memory="--no_memory" not in ARGUMENTS[name])


def check_comparison(rows: list[dict], peers: int, memory: bool) -> None:
    assert [row["name"].startswith("SpikingJelly") for row in rows].count(True) == peers
    assert rows[0]["ratio"] == {"q1": 1, "median": 1, "q3": 1}
    for row in rows:
        assert row["per_second"] > 0
        assert row["ratio"]["q1"] <= row["ratio"]["median"] <= row["ratio"]["q3"]
        assert ({"saved_mib", "peak_mib"} <= row.keys()) == memory


def test_what_has_no_peer_says_so(tmp_path):
    events = "--model qkformer_2_256 --model_args '{embed_dim: 32, num_heads: 2, T: 2}'"
    arguments = f"{events} --size 32 --no_memory"
    result = next(iter(run("inference", tmp_path, arguments)["inference"].values()))
    assert result["rows"][0]["not_measured"] == "SpikingJelly has no qkformer_2_256"
    assert "seconds" in result["rows"][2]
    assert "ratio" not in result["rows"][2]
    table = module("report").report(tmp_path)
    assert "not measured: SpikingJelly has no qkformer_2_256" in table
    assert "**Not measured on a GPU.**" in table
    assert "### train\n\nNot measured on this machine." in table


def contenders(model: str, device: str, step: str, **differing):
    networks = module("networks")
    setting = networks.Setting(model, 224, 1, "fp16", torch.device(device), **differing)
    options = dict(compiled=False, folded=step == "inference_step")
    return module("contenders").contenders(setting, getattr(networks, step), **options)


@pytest.mark.parametrize("step", ["training_step", "inference_step"])
def test_a_gpu_has_rows_of_its_own(step):
    names = {
        device: [contender.name for contender in contenders("qkformer_10_384", device, step)]
        for device in ("cpu", "cuda")
    }
    what = {"training_step": "with AdamW", "inference_step": "folded"}[step]
    assert f"ours, torch, channels_last, {what}" in names["cpu"] or step == "inference_step"
    assert not any("graph" in name for name in names["cpu"])
    assert sum("cupy" in name for name in names["cpu"]) == 1
    # what holds a graph's memory comes last, the largest behind all others
    *_, ours, peer = names["cuda"]
    assert ours.startswith("ours, cupy, ") and ours.endswith("channels_last, CUDA graph") == (
        step == "inference_step"
    )
    assert peer.startswith("SpikingJelly") and peer.endswith("CUDA graph")


def test_networks_that_onednn_would_corrupt_are_not_measured():
    """See SampledConv2d, which ours have: 4 channels, channels last, trained on a CPU."""
    networks = module("networks")
    made = {}
    for step in (networks.training_step, networks.inference_step):
        for device, dim in (("cpu", 32), ("cpu", 128), ("cuda", 32)):
            arguments = {"embed_dim": dim}
            setting = networks.Setting(
                "qkformer_10_384", 64, 1, "fp32", torch.device(device), arguments
            )
            rows = module("contenders").contenders(setting, step, compiled=True, folded=False)
            made[step, device, dim] = [row.name.split(", ")[1:] for row in rows if row.missing]
    missing = made.pop((networks.training_step, "cpu", 32))
    assert len(missing) == 4
    assert all({"channels_last", "compiled"} & set(row) for row in missing)
    assert not any(made.values())


def test_what_does_not_fit_beside_the_others_is_not_measured():
    """On a GPU near its limit; and what fails leaves nothing behind."""
    measure = module("measure")
    made = []

    class Step:
        def __init__(self, fails_at):
            assert all(step() is None for step in made), "a failed step is still there"
            self.calls, self.fails_at = 0, fails_at
            if fails_at == 1:
                made.append(weakref.ref(self))

        def __call__(self):
            self.calls += 1
            if self.calls == self.fails_at:
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to ...")

    contenders = [measure.Contender(str(n), partial(Step, n)) for n in (9, 1, 2, 8)]
    rows = measure.compare(contenders, torch.device("cpu"), repeats=3, items=1, memory=False)
    assert ["seconds" in row for row in rows] == [True, False, False, True]
    assert rows[1]["not_measured"] == rows[2]["not_measured"] == "CUDA out of memory."


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


def test_ours_are_compared_with_the_fastest_peer_too():
    measure = module("measure")

    def busy(milliseconds):
        return partial(partial, time.sleep, milliseconds / 1e3)

    contenders = [
        measure.Contender("peer", busy(20), peer=True),
        measure.Contender("peer, faster", busy(10), peer=True),
        measure.Contender("ours", busy(5)),
    ]
    rows = measure.compare(contenders, torch.device("cpu"), repeats=3, items=1, memory=False)
    assert [row["peer_ratio"]["median"] for row in rows][1] == 1
    assert 0.2 < rows[0]["peer_ratio"]["median"] < 1 < rows[2]["peer_ratio"]["median"] < 4
    assert rows[2]["ratio"]["median"] > rows[2]["peer_ratio"]["median"]
    table = module("report").comparison("train", rows)
    assert "| than the fastest peer |" in table
    alone = measure.compare(contenders[1:], torch.device("cpu"), repeats=1, items=1, memory=False)
    assert "than the fastest peer" not in module("report").comparison("train", alone)


def test_a_step_with_the_optimizer_leaves_the_weights_as_they_are():
    """So that every round measures the same network; the update itself is computed."""
    networks = module("networks")
    tiny = {"embed_dim": 64, "num_heads": 2, "depths": [1, 1, 1]}
    setting = networks.Setting(
        "qkformer_10_384", 32, 2, "fp32", torch.device("cpu"), tiny, optimizer=True
    )
    models, updated = [], []

    def network(own):
        models.append(networks.our_network(own))
        return models[0]

    step = networks.training_step(network, setting)
    before = [parameter.clone() for parameter in models[0].parameters()]
    hook = register_optimizer_step_post_hook(lambda *_: updated.append(True))
    step()
    hook.remove()
    assert len(updated) == 1
    assert all(map(torch.equal, before, models[0].parameters()))


class Board:
    """NVML of a GPU that takes 300 W."""

    class NVMLError(Exception):
        pass

    def __init__(self, known: bool = True):
        self.known = known
        self.nvmlInit = self.nvmlShutdown = lambda: None

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if not self.known:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        assert handle == "GPU-1234"
        return int(300 * time.perf_counter() * 1e3)


@pytest.mark.parametrize("known", [True, False])
def test_energy_is_that_of_the_board_per_step(monkeypatch, known):
    energy = module("energy")
    monkeypatch.setitem(sys.modules, "pynvml", Board(known))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    gpu = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    joules = energy.joules(partial(time.sleep, 0.01), torch.device("cuda"), at_least=0.2)
    if known:
        assert 300 * 0.01 * 0.9 < joules < 300 * 0.01 * 10
    else:
        assert joules is None


def test_a_plot_of_scaling(tmp_path):
    pytest.importorskip("matplotlib", reason="comes with the extra: benchmark")
    run("scaling", tmp_path, ARGUMENTS["scaling"].replace("--no_plot", ""))
    (plot,) = tmp_path.glob("*-scaling.png")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_step_saves_each_storage_once_and_no_parameter():
    measure = module("measure")
    weight = torch.ones(8, 8, requires_grad=True)
    x = torch.ones(4, 8)

    def step():
        y = x @ weight  # keeps x and, as a parameter, the weight
        (y * y).sum().backward()  # keeps y twice

    assert measure.saved_for_backward(step) == 4 * (x.numel() + x.numel())


@pytest.mark.slow
def test_peak_memory_is_that_of_the_step():
    measure = module("measure")
    peaks = measure.cpu_peaks([partial(allocating, 8), partial(allocating, 64)], own_pages=True)
    if None in peaks:
        pytest.skip("this system does not say")
    assert peaks == pytest.approx([8, 64], abs=4)


def allocating(mebibytes: int):
    return lambda: torch.zeros(mebibytes, 2**18).add_(1).sum().item()


def test_tables_of_the_readme_are_those_of_the_results():
    report = module("report")
    text = report.README.read_text()
    tables = text.partition(report.BEGIN)[2].partition(report.END)[0]
    assert tables.strip() == report.report(report.RESULTS)


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


@pytest.mark.parametrize("pool", [None, "before"])
def test_traffic_of_a_layer(pool):
    """Bytes per value of the convolution's output, without pool and with a quarter left by it."""
    traffic = module("traffic")
    with traffic.shapes_only():
        layer = ConvBNNeuron(8, 8, pool=pool, neuron=LIF(backend="cupy")).bfloat16()
        layer.bn.float()
        x = torch.empty(4, 16, 8, 64, 64, dtype=torch.bfloat16, requires_grad=True)
        counted = traffic.training_step(layer, x)
    per_value = {name: round(total / x.numel(), 2) for name, total in counted.items()}
    assert per_value["batch_statistics"] == 2
    assert per_value["convolution"] == 4  # its input and its output
    assert per_value["convolution_backward"] == 8  # dy twice, x and dx once
    assert per_value["bn_neuron"] == (2.5 if pool else 4)
    # y and dy, and the spikes' gradient; y and that again, or the windows' maxima and places
    assert per_value["bn_neuron_backward"] == (2 + 2 + 0.5 + 2 + 2 * 0.75 if pool else 10)


def test_models_move_what_they_must():
    """With the fused kernels about the bytes of the roofline's ceiling, as the README says."""
    traffic = module("traffic")
    for name, ceiling in module("roofline").CEILINGS.items():
        total = sum(traffic.megabytes_per_image(name).values())
        assert total < 1.05 * ceiling.fused_mb
        row = next(row for row in module("report").README.read_text().splitlines()
                   if row.startswith(f"| {name} | "))  # fmt: skip
        assert total == pytest.approx(float(row.split("|")[2]), rel=0.01)


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


def test_the_memory_limit_of_a_cpu_is_not_looked_for(tmp_path):
    with pytest.raises(SystemExit, match="for GPUs"):
        run("train", tmp_path, f"{ARGUMENTS['train']} --to_memory_limit")
