"""From a run's folder to a file by one line, without the data; what is refused."""

import re
from dataclasses import asdict

import numpy as np
import pytest
import timm
import torch
from conftest import make_model

from qkformer.__main__ import main as qkformer_main
from qkformer.export.__main__ import COMMANDS, main
from qkformer.training.command_line import parse_train

CONFIG = """
epochs: 4
model: {name: %s, T: 2, args: {embed_dim: 16, num_heads: 2, depths: [1], mixers: [token_qk]}}
data: {name: %s, image_size: 8, batch_size: 4}
optimizer: {lr: 0.005}
schedule: {name: one_cycle}
"""


def write(folder, name="qkformer_4_384", data="digits", in_chans=1, num_classes=10):
    """A run's folder with a checkpoint of a network that fires."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yml").write_text(CONFIG % (name, data))
    trained = parse_train(folder / "config.yml", [])[0]
    sizes = dict(in_chans=in_chans, num_classes=num_classes)
    model = make_model(name, **sizes, **trained.model.arguments()).float()
    torch.save({"model": model.state_dict(), "config": asdict(trained)}, folder / "last.pth")
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    write(folder)
    return folder


def command(name, run, *options):
    main([name, "--checkpoint", str(run / "last.pth"), *options])


@pytest.mark.slow
def test_torch_of_images_and_of_frames(run, tmp_path, capsys):
    command("torch", run, "--model.T", "1")
    out = capsys.readouterr().out
    assert "trained with 2" in out and "the same class in 4 of 4" in out
    exported = torch.export.load(run / "model.pt2").module()
    assert exported(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    write(tmp_path, "qkformer_2_256", "dvs128-gesture", in_chans=2, num_classes=11)
    file = tmp_path / "events.pt2"
    command("torch", tmp_path, "--data.image_size", "16", "--output", str(file), "--no_check")
    assert "not checked" in capsys.readouterr().out
    assert torch.export.load(file).module()(torch.ones(3, 2, 2, 16, 16)).shape == (3, 11)
    command("torch", run, "--streaming", "--fixed_batch", "--output", str(tmp_path / "s.pt2"))
    logits, *states = torch.export.load(tmp_path / "s.pt2").example_inputs[0]
    assert logits.shape == (1, 1, 8, 8) and len(states) > 5


def test_trace_of_a_sample_of_the_test_set(run, tmp_path, capsys):
    command("trace", run, "--sample", "5", "--quantize", "int8", "--device", "cpu")
    assert "trace.npz: " in capsys.readouterr().out
    with np.load(run / "trace.npz") as file:
        assert file["input"].shape == (1, 1, 8, 8)
        assert file["stages.0.embed.convs.1.conv.weight"].dtype == np.int8
        assert file["stages.0.embed.convs.1.conv.accumulator"].any()
    with pytest.raises(SystemExit):
        command("trace", run, "--sample", "360")
    assert "error: --sample 360: the test set has 360, from 0 on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["onx"], "did you mean 'onnx'"),
        (["onnx"], "--checkpoint: required"),
        (["torch", "--checkpoint", "RUN", "--device", "cuda"], "exporting is done on the CPU"),
        (["torch", "--checkpoint", "RUN", "--model.neuron", "if"], "trained with another model"),
        (["torch", "--checkpoint", "RUN", "--streaming", "--ssa", "original"], "SSA, which no"),
        (["torch", "--checkpoint", "RUN", "--output", "/nope/a.pt2"], "there is no folder /nope"),
        (["torch", "--checkpoint", "RUN", "--streamin"], "unknown option --streamin"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line(run, argv, message, capsys):
    argv = [str(run / "last.pth") if each == "RUN" else each for each in argv]
    with pytest.raises(SystemExit) as stop:
        main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("argv", [["onnx"], ["torch", "--streaming"], ["nir"]], ids=" ".join)
def test_models_of_timm_are_refused_in_one_line(argv, tmp_path, capsys):
    plain = "model: {name: resnet10t}"
    text = re.sub("model: {.*}}", plain, CONFIG % ("", "digits")).replace("size: 8", "size: 32")
    (tmp_path / "config.yml").write_text(text)
    trained = parse_train(tmp_path / "config.yml", [])[0]
    model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    torch.save({"model": model.state_dict(), "config": asdict(trained)}, tmp_path / "last.pth")
    with pytest.raises(SystemExit) as stop:
        command(argv[0], tmp_path, *argv[1:])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "resnet10t is timm's own" in error
    assert error.count("\n") == 1


def test_one_program_has_all_commands(capsys):
    qkformer_main(["--help"])
    assert {"export", "energy"} <= set(capsys.readouterr().out.split())
    qkformer_main(["export", "--help"])
    assert set(COMMANDS) <= set(capsys.readouterr().out.split())
