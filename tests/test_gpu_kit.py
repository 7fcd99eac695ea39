"""The kit for the first hour on a GPU, run without one: its scripts follow what they call."""

import importlib
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import qkformer
from qkformer.layers import ConvBNNeuron
from qkformer.neurons import LIF

ROOT = Path(__file__).parents[1]
STAGES = ("check", "kernels", "bench", "compiled", "small", "ncu", "again")
PYTHON = (
    '#!/bin/sh\nfor word; do printf "%s\\037" "$word"; done >> "$COMMANDS"; echo >> "$COMMANDS"\n'
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
]


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> list[list[str]]:
    """What first_run.sh calls in all its stages, each once."""
    folder = tmp_path_factory.mktemp("kit")
    python, said = folder / "python", folder / "commands"
    python.write_text(PYTHON)
    python.chmod(0o755)
    known = {"PYTHON": str(python), "COMMANDS": str(said), "MODE": "--dry", "OUT": str(folder)}
    known["CUPY_CACHE_DIR"] = str(folder / "cache")
    script = ["bash", str(ROOT / "benchmarks" / "gpu" / "first_run.sh"), *STAGES]
    done = subprocess.run(script, env=os.environ | known, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "=== summary" in done.stdout and "rc 1" not in done.stdout
    assert (folder / "log.txt").exists()
    calls = dict.fromkeys(said.read_text().splitlines())
    return [line.split("\037")[:-1] for line in calls]


def test_every_command_of_the_kit_runs(commands, monkeypatch, capsys):
    """In this process, as each would import PyTorch again; of those with the same options one."""
    monkeypatch.syspath_prepend(str(ROOT))
    alike = {}
    for minus_m, name, *arguments in commands:
        assert minus_m == "-m"
        given = dict(itertools.pairwise(arguments))
        assert given.get("--model", "qkformer_10_384") in qkformer.list_models()
        options = frozenset(argument for argument in arguments if argument.startswith("--"))
        alike.setdefault((name, options), (arguments, given))
    for (name, _options), (arguments, given) in alike.items():
        if name == "pytest":
            assert (ROOT / arguments[-1]).exists()
            continue
        main = importlib.import_module(name).main
        main(arguments) if arguments else main()
        if "--out" in given:
            assert json.loads(Path(given["--out"]).read_text())
    modules = {f"benchmarks.gpu.{path.stem}" for path in (ROOT / "benchmarks/gpu").glob("*.py")}
    modules -= {f"benchmarks.gpu.{name}" for name in ("__init__", "options", "calls")}
    ran = {name for name, _options in alike}
    assert ran == modules | {"benchmarks.train", "benchmarks.neuron", "pytest"}
    printed = capsys.readouterr().out
    for kernel in ("moments", "pooled_gather", "reduce", "qk_mask_backward"):
        assert kernel in printed


@pytest.mark.parametrize("stride", [(64, 1, 16, 4), (64, 16, 4, 1), (0, 0, 0, 0), (1, 2, 8, 32)])
def test_a_tensor_is_made_again_as_it_was(monkeypatch, stride):
    monkeypatch.syspath_prepend(str(ROOT))
    calls = importlib.import_module("benchmarks.gpu.calls")
    for shape in ((2, 4, 4, 4), (0, 4, 4, 4)):
        like = calls.Like(shape, stride, torch.half)
        assert calls.described(like.made(torch.device("cpu"))) == like
    full = calls.Like((2, 4, 4, 4), stride, torch.half)
    assert full.bytes == 2 * (128 if any(stride) else 1)
    vector = calls.described(torch.arange(3.0))
    assert torch.equal(vector.made(torch.device("cpu")), torch.ones(3))


def test_kernels_are_counted_and_measured_by_their_own_bytes(monkeypatch):
    """Of a layer with a pool: what a value of its convolution's output costs, beside vectors."""
    monkeypatch.syspath_prepend(str(ROOT))
    calls = importlib.import_module("benchmarks.gpu.calls")
    null = importlib.import_module("benchmarks.null_launcher")
    names = importlib.import_module("benchmarks.gpu.options")
    x = torch.zeros(2, 1, 8, 64, 64, requires_grad=True)
    with null.null_launcher("cpu") as launcher:
        layer = ConvBNNeuron(8, 8, pool="before", neuron=LIF(backend="cupy"))
        with calls.Calls() as counting:
            for _ in range(2):
                layer(x).square().sum().backward()
        found = {call.operation._schema.name.split("::")[1]: call for call in counting.counted}
        statistics, *_ = found
        dy, *_ = found["bn_neuron_backward"].on(torch.device("cpu"))()
    assert launcher.launched["pooled_forward"] == 2
    assert launcher.launched["pooled_backward"] == launcher.launched["pooled_gather"] == 3
    assert launcher.launched.keys() <= names.KERNELS
    assert names.kernel("void pooled_gather(Arguments)") == "pooled_gather"
    assert names.kernel("void at::native::reduce_kernel<512>()") is None
    assert set(counting.counted.values()) == {2}
    assert dy.shape == (2, 8, 64, 64)
    per_value = {
        kernel: found[operation].least(kernel, written * x.numel()) / x.numel()
        for kernel, operation, written in (
            ("moments", statistics, 0),
            ("pooled_forward", "bn_neuron", 1),
            ("pooled_backward", "bn_neuron_backward", 4),
            ("pooled_gather", "bn_neuron_backward", 4),
        )
    }
    windows = 5 / 4  # the gradient of each, and a byte
    expected = {"moments": 4, "pooled_forward": 5, "pooled_backward": 5 + windows}
    assert per_value == pytest.approx(expected | {"pooled_gather": 8 + windows}, rel=0.01)
    assert str(found["bn_neuron"]) == "pool" and found["bn_neuron"].shape == "8,64,64"
    assert found["bn_neuron"].least("no such kernel", 0) is None
