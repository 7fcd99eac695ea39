"""Every benchmark in its smallest configuration, and tables that say what the results say."""

import importlib
import json
import os
import shlex
import weakref
from collections import Counter
from functools import partial
from pathlib import Path

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


def test_ours_are_compared_with_the_fastest_peer_too(monkeypatch):
    measure, report = module("measure"), module("report")
    seconds = {"peer": [4.0, 8.0], "peer, faster": [2.0, 4.0], "ours": [1.0, 1.0]}
    monkeypatch.setattr(measure, "_timed_in_turns", lambda *_: (seconds, seconds))
    contenders = [
        measure.Contender(name, lambda: lambda: None, peer=name != "ours") for name in seconds
    ]
    compare = partial(measure.compare, device=torch.device("cpu"), repeats=2, items=1, memory=False)
    rows = compare(contenders)
    assert [row["peer_ratio"]["median"] for row in rows] == [0.5, 1, 3]
    assert [row["ratio"]["median"] for row in rows] == [1, 2, 6]
    assert "| than the fastest peer |" in report.comparison("train", rows)
    del seconds["peer"]  # with one peer there is nothing to choose
    assert "than the fastest peer" not in report.comparison("train", compare(contenders[1:]))


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


@pytest.mark.parametrize("load, crowded", [(1.5, False), (9.0, True)])
def test_tables_say_where_other_programs_were_busy(tmp_path, monkeypatch, load, crowded):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    run("neuron", tmp_path, f"{ARGUMENTS['neuron']} --no_memory")
    text = module("report").report(tmp_path)
    assert f"load of the machine {load}" in text
    assert ("Other programs kept the cores busy" in text) == crowded


@pytest.mark.parametrize("pool", [None, "before"])
def test_traffic_of_a_layer(pool):
    """Bytes per value of the convolution's output, without pool and with a quarter left by it."""
    traffic = module("traffic")
    with traffic.shapes_only():
        layer = ConvBNNeuron(8, 8, pool=pool, neuron=LIF(backend="cupy")).bfloat16()
        layer.bn.float()
        x = torch.empty(4, 16, 8, 64, 64, dtype=torch.bfloat16, requires_grad=True)
        step = traffic.training_step(layer, x)
    assert not step.copies
    per_value = {name: round(total / x.numel(), 2) for name, total in step.moved.items()}
    assert per_value["batch_norm"] == 2
    assert per_value["convolution"] == 4  # its input and its output
    assert per_value["convolution_backward"] == 8  # dy twice, x and dx once
    assert per_value["bn_neuron"] == (2.5 if pool else 4)
    # y and dy, and the spikes' gradient; y and that again, or the windows' maxima and places
    assert per_value["bn_neuron_backward"] == (2 + 2 + 0.5 + 2 + 2 * 0.75 if pool else 10)


@pytest.mark.parametrize("last", [False, True])
def test_a_tensor_in_another_layout_counts_as_a_copy(last):
    traffic = module("traffic")
    with traffic.shapes_only():
        layer = ConvBNNeuron(8, 8, neuron=LIF(backend="cupy"))
        layer.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        with traffic.Traffic() as step:
            y = layer(torch.empty(4, 16, 8, 6, 6))
            y.backward(torch.empty(4, 16, 6, 6, 8).permute(0, 1, 4, 2, 3))
    if last:
        assert step.copies == {"convolution(input)": 1, "convolution_backward(input)": 1}
    else:
        assert step.copies == {"bn_neuron_backward(grads)": 1}
    assert step.moved["layout"] == 2 * 4 * y.numel() * len(step.copies)


def test_models_move_what_they_must():
    """With the fused kernels about the bytes of the roofline's ceiling, as the README says; copies
    are those of heads, of the product and its gradient, and of images."""
    traffic, rows = module("traffic"), module("report").README.read_text().splitlines()
    for name, ceiling in module("roofline").CEILINGS.items():
        row = next(row for row in rows if row.startswith(f"| {name} | ")).split("|")
        ssa = {"10": 7, "4": 2, "2": 1}[name.split("_")[1]]  # layers
        frames = name == "qkformer_2_256"  # of all samples at one step, not of one at all steps
        for last in (False, True):
            moved, copies = traffic.megabytes_per_image(name, channels_last=last)
            total = sum(moved.values())
            assert total < 1.05 * ceiling.fused_mb
            assert total == pytest.approx(float(row[3 if last else 2]), rel=0.01)
            assert copies.pop("clone", 0) == frames + 2 * ssa * last
            assert copies == Counter(
                dict.fromkeys(("convolution(input)", "convolution_backward(input)"), int(last))
            )


def test_the_memory_limit_of_a_cpu_is_not_looked_for(tmp_path):
    with pytest.raises(SystemExit, match="for GPUs"):
        run("train", tmp_path, f"{ARGUMENTS['train']} --to_memory_limit")
