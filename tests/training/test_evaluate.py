"""test.py: what is refused before the data are looked for, and what its results say."""

import errno
import json
import os
from dataclasses import asdict

import pytest
import torch
from conftest import make_model
from torch.utils.data import TensorDataset

import qkformer
from qkformer.data.registry import DATASETS
from qkformer.data.source import ImageData
from qkformer.training import environment, main
from qkformer.training.command_line import parse_train

CONFIG = """
epochs: 4
model: {name: qkformer_4_384, T: 1, neuron: lif, args: {embed_dim: 16, num_heads: 2}}
data: {name: few, image_size: 8, batch_size: 4}
optimizer: {lr: 0.005}
schedule: {name: one_cycle}
compute: {precision: fp16}
"""


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """Data of 3 classes; how often they were loaded."""
    times = []

    def few_images(config, *, T=None, training=True):
        times.append(config.name)
        images = torch.randint(0, 255, (6, 1, 8, 8), dtype=torch.uint8)
        few = TensorDataset(images, torch.arange(6) % 3)
        return ImageData(few, few, num_classes=3, mean=(0.4,), std=(0.3,))

    monkeypatch.setitem(DATASETS, "few", few_images)
    return times


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "few.yml"
    file.write_text(CONFIG)
    return file


def write(config, name="run/last.pth", *options, num_classes=3, **content):
    """A checkpoint as a run with these options leaves it."""
    path = config.parent / name
    path.parent.mkdir(exist_ok=True)
    trained = parse_train(config, options)[0]
    model = qkformer.create_model(
        trained.model.name, num_classes=num_classes, in_chans=1, **trained.model.arguments()
    )
    facts = {"config": asdict(trained), "epoch": 2, "acc1": 12.5}
    torch.save({"model": model.state_dict(), **facts, **content}, path)
    return path


def run_test(config, path, *options):
    main.test(config, ["--checkpoint", str(path), "--device", "cpu", *options])
    return json.loads((path.parent / "results.json").read_text())


def refused(config, path, *options, capsys):
    with pytest.raises(SystemExit) as stop:
        run_test(config, path, *options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error


# ------------------------------------------------------------------ refused before data are there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.neuron", "if"], "model.neuron: lif -> if"),
        (["--model.args.attn_scale", "0.5"], "model.args.attn_scale: None -> 0.5"),
        (["--model.args.embed_dim", "32"], "does not fit the model"),
        (["--model.args.foo", "1"], "takes no argument 'foo'"),
        (["--model.name", "ms_qkformer_4_384"], "is of qkformer_4_384"),
        (["--model.ssa=leaky"], "expected fixed or original"),
        (["--weights", "ema"], "no averaged weights"),
        (["--input_size", "9"], "must be a multiple of"),
    ],
    ids=str,
)
def test_another_model_than_trained_is_refused_before_data_are_loaded(
    config, capsys, loaded, options, message
):
    assert message in refused(config, write(config), *options, capsys=capsys)
    assert not loaded


@pytest.mark.slow
def test_a_head_of_other_classes_is_refused_when_they_are_known(config, capsys, loaded):
    error = refused(config, write(config, num_classes=5), capsys=capsys)
    assert "only the head differs" in error
    assert loaded


def test_time_steps_and_attention_are_those_of_the_training_or_it_is_said(config, capsys):
    path = write(config, "run/last.pth", "--model.T=2", "--model.ssa=original")
    time_steps = f"model.T: 1, but {path} was trained with 2\n"
    ssa = f"model.ssa: fixed, but {path} was trained with original\n"
    results = run_test(config, path)
    assert (results["T"], results["ssa"]) == (2, "original")
    out = capsys.readouterr().out
    assert f"configuration: the one recorded in {path}\n" in out
    assert "model.T" not in out and "model.ssa" not in out  # the command, too, is printed
    given = ("--config", str(config))
    results = run_test(config, path, *given)
    assert (results["T"], results["ssa"]) == (1, "fixed")  # as configured
    out = capsys.readouterr().out
    assert out.count(time_steps) == out.count(ssa) == 1
    for asked in (["--ssa", "both"], ["--ssa", "fixed"]):
        run_test(config, path, *given, *asked)
        out = capsys.readouterr().out
        assert out.count(time_steps) == 1 and "model.ssa" not in out
    run_test(config, path, *given, "--time_steps", "1")
    out = capsys.readouterr().out
    assert ssa in out and "model.T" not in out
    run_test(config, path, "--model.T=2", "--model.ssa=original")
    assert "was trained" not in capsys.readouterr().out


# -------------------------------------------------------------------------------- what is written


def test_results_say_what_decides_them(config):
    path = write(config, "run/last.pth", "--model.neuron", "if")
    results = run_test(config, path, "--model.neuron", "if", "--data.crop_pct", "0.5")
    assert results["neuron"] == "IF"
    assert results["arguments"] == {
        "T": 1,
        "neuron": "if",
        "embed_dim": 16,
        "num_heads": 2,
    }
    assert results["resize"].startswith("Resize(size=16, interpolation=bicubic")
    assert results["resize"].endswith("CenterCrop(size=(8, 8))")
    assert results["split"] is None
    assert "commit" in results and "command" in results


def test_the_precision_is_what_was_computed(config, capsys):
    assert run_test(config, write(config))["precision"] == "fp32"
    assert "fp16 is for GPUs, on the CPU float32 takes its place" in capsys.readouterr().out
    assert run_test(config, write(config), "--compute.precision", "bf16")["precision"] == "bf16"
    assert "float32" not in capsys.readouterr().out


def test_no_result_is_lost_to_a_later_test(config):
    folder = write(config).parent
    tests = [
        ("last.pth", ["--ssa", "both"]),
        ("best.pth", ["--time_steps", "2"]),
        ("last.pth", ["--ssa", "fixed"]),
    ]
    for name, options in tests:
        latest = run_test(config, write(config, f"run/{name}"), *options)
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(line["checkpoint"][-8:], line["ssa"], line["T"]) for line in lines] == [
        ("last.pth", "fixed", 1),
        ("last.pth", "original", 1),
        ("best.pth", "fixed", 2),
        ("last.pth", "fixed", 1),
    ]
    assert latest == lines[-1]


def test_a_folder_that_takes_no_results_is_said_to_have_an_alternative(config, capsys, monkeypatch):
    def read_only(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = write(config)
    with monkeypatch.context() as patch:
        patch.setattr(environment.tempfile, "TemporaryFile", read_only)
        error = refused(config, path, capsys=capsys)
    assert f"{path.parent}: Read-only file system" in error
    assert "choose another folder" in error and "--output" in error
    assert error.count("\n") == 1


def test_averaged_weights_in_the_file_are_pointed_out(config, capsys):
    path = write(config)
    run_test(config, path)
    assert "has averaged weights" not in capsys.readouterr().out
    path = write(config, state_dict_ema=torch.load(path)["model"])
    run_test(config, path)
    assert f"{path} has averaged weights too: --weights ema tests them" in capsys.readouterr().out
    run_test(config, path, "--weights", "ema")
    assert "has averaged weights" not in capsys.readouterr().out


def test_int8_weights_are_tested_as_such_and_their_size_is_said(config):
    options = dict(num_classes=3, in_chans=1, embed_dim=16, num_heads=2, T=1)
    fires = make_model("qkformer_4_384", **options).float()
    path = write(config, model=fires.state_dict())
    whole = run_test(config, path)
    small = run_test(config, path, "--quantize", "int8")
    assert (whole["quantize"], small["quantize"]) == (None, "int8")
    assert small["megabytes"] < 0.5 * whole["megabytes"] < 0.1
    assert small["loss"] != whole["loss"] and small["images"] == whole["images"]
