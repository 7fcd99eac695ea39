"""From a run's folder to the hub and back: what timm builds from it, and what people read."""

import builtins
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from conftest import make_model, with_spikes
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import qkformer
from qkformer import load_checkpoint, released_state_dict
from qkformer.checkpoint import file_md5, load
from qkformer.data.inputs import known_inputs
from qkformer.export.__main__ import main
from qkformer.export.hf import export_hf
from qkformer.neurons import LIF
from qkformer.predict import main as predict
from qkformer.training.command_line import parse_train
from qkformer.training.trained import load_trained

PAGE = (Path(__file__).parents[2] / "docs/hub.md").read_text(encoding="utf-8")
SMALL = {"embed_dim": 16, "num_heads": 2}
CONFIG = """
epochs: 4
model: {name: %s, T: 3, drop_path_rate: 0.2, ssa: %s, args: {embed_dim: 16, num_heads: 2}}
data: {name: %s, image_size: 32, batch_size: 4, root: /home/me}
optimizer: {lr: 0.005}
schedule: {name: one_cycle}
"""


def write_run(folder, data="cifar10", ssa="fixed", name="qkformer_4_384", **content):
    """A folder as train.py and test.py leave it, with a network that fires."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.yml").write_text(CONFIG % (name, ssa, data))
    config = parse_train(folder / "config.yml", [])[0]
    inputs = known_inputs(data)
    sizes = {"num_classes": len(inputs.class_names), "in_chans": inputs.in_chans}
    model = make_model(name, **sizes, **config.model.arguments()).float()
    facts = {"model": model.state_dict(), "config": asdict(config), "inputs": asdict(inputs)}
    torch.save({**facts, "epoch": 3, "acc1": 91.5, **content}, folder / "best.pth")
    return model


def write_measurements(folder, ssa="fixed"):
    tested = {"checkpoint_md5": file_md5(folder / "best.pth"), "weights": "trained", "T": 3}
    tested |= {"ssa": ssa, "input_size": [3, 32, 32], "batch_size": 64, "images": 10_000}
    tested |= {"precision": "fp32", "acc1": 92.25}
    others = [{**tested, "acc1": 1.0, "ssa": "other"}, {**tested, "acc1": 2.0, "T": 1}]
    results = [{**tested, "acc1": 3.0}, tested, *others]
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in results))
    energy = {"T": 3, "ssa": ssa, "checkpoint": "x/best.pth", "neurons": ["n"]}
    energy["energy"] = {"qkformer": {"mJ": 1.25}}
    (folder / "energy.json").write_text(json.dumps(energy))
    facts = {"commit": "abc123", "processes": 2, "device": "cpu", "host": "secret"}
    facts["versions"] = {"qkformer": "0.1.0", "torch": "2.14.1"}
    (folder / "environment.json").write_text(json.dumps(facts))
    (folder / "metrics.jsonl").write_text('{"seconds": 30.0}\n' * 4)


def hf(checkpoint, output, *options):
    main(["hf", "--checkpoint", str(checkpoint), "--output", str(output), *options])


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(["hf", *map(str, argv)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    return folder, write_run(folder)


def test_timm_builds_what_was_trained_and_knows_its_input(run, tmp_path):
    folder, model = run
    hf(folder / "best.pth", tmp_path / "hub")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {
        "config.json", "model.safetensors", "README.md"
    }  # fmt: skip
    built = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert built.training and str(built) == str(model)  # with its stochastic depth
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    x = create_transform(**resolve_model_data_config(built))(image)
    trained = load_trained(parse_train(folder / "config.yml", [])[0], folder / "best.pth")
    config = trained.config.data
    ours = trained.inputs.prepare(config)(trained.inputs.transform(config)(image)[None])
    torch.testing.assert_close(x[None], ours, rtol=0, atol=1e-5)
    logits, _ = with_spikes(model, ours)
    assert torch.equal(built.eval()(ours), logits)
    assert built.pretrained_cfg["label_names"][3] == "cat"


def test_a_folder_takes_the_place_of_a_checkpoint(run, tmp_path, capsys):
    folder, model = run
    hf(folder / "best.pth", tmp_path / "hub")
    loaded = qkformer.create_model("qkformer_4_384", num_classes=10, T=3, **SMALL)
    report = load_checkpoint(loaded, tmp_path / "hub")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert (report.epoch, report.accuracy) == (3, 91.5)
    assert report.recorded["data"]["root"] is None and report.recorded["epochs"] == 4
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    answers = []
    for path in (folder / "best.pth", tmp_path / "hub"):
        capsys.readouterr()
        predict(["--checkpoint", str(path), "--device", "cpu", "--json", str(tmp_path / "red.png")])
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] and "automobile" in str(answers[0])
    hf(tmp_path / "hub", tmp_path / "again")
    first, again = tmp_path / "hub", tmp_path / "again"
    weights = first / "model.safetensors"
    assert weights.read_bytes() == (again / "model.safetensors").read_bytes()
    one, other = (json.loads((each / "config.json").read_text()) for each in (first, again))
    assert one["qkformer"].pop("md5") == file_md5(folder / "best.pth")
    assert other["qkformer"].pop("md5") == file_md5(weights)
    assert one == other


@pytest.mark.parametrize("ssa", ["fixed", "original"])
def test_the_card_says_what_the_runs_files_say(ssa, tmp_path):
    folder = tmp_path / "run"
    write_run(folder, ssa=ssa)
    write_measurements(folder, ssa)
    hf(folder / "best.pth", tmp_path / "hub")
    card = (tmp_path / "hub/README.md").read_text()
    for said in (
        "| top-1 | 92.25 % of 10,000 test images (test.py, batches of 64, fp32) |",
        "| time steps T | 3 |",
        "| input | 3 x 32 x 32 |",
        "| energy | 1.25 mJ per sample (convention qkformer) |",
        "commit abc123; PyTorch 2.14.1; 2 x cpu; 4 epochs in 2m00s",
        "drop_path_rate: 0.2",
    ):
        assert said in card
    assert ("tested in batches of 64" in card) == (ssa == "original")
    assert "/home/me" not in card and "secret" not in card
    assert "/home/me" not in (tmp_path / "hub/config.json").read_text()


def test_what_was_measured_of_other_weights_is_left_out(run, tmp_path):
    folder, _ = run
    write_measurements(folder)
    (folder / "last.pth").write_bytes((folder / "best.pth").read_bytes() + b"\0")
    hf(folder / "last.pth", tmp_path / "hub")
    card = (tmp_path / "hub/README.md").read_text()
    assert "| top-1 | 91.50 %, as recorded in training |" in card
    assert "| energy |" not in card


# ------------------------------------------------------------------------------ published files


def test_a_published_file_becomes_a_safe_and_named_copy(run, tmp_path, monkeypatch, capsys):
    folder, model = run
    file = tmp_path / "checkpoint-199.pth"
    torch.save({"model": released_state_dict(model)}, file)
    assert "--config: required" in refused(capsys, "--checkpoint", file, "--output", tmp_path / "a")
    hf(file, tmp_path / "a", "--config", str(folder / "config.yml"))
    known = load.KnownFile("an old friend", str(folder / "config.yml"))
    monkeypatch.setitem(load.KNOWN_FILES, file_md5(file), known)
    hf(file, tmp_path / "b")
    x = torch.randn(2, 3, 32, 32)
    logits, _ = with_spikes(model, x)
    for name in "ab":
        built = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True).eval()
        assert torch.equal(built(x), logits)
        card = (tmp_path / name / "README.md").read_text()
        assert "Not recorded" in card and ("an old friend" in card) == (name == "b")


def test_imagenets_classes_have_names_and_descriptions(tmp_path):
    folder = tmp_path / "run"
    model = write_run(folder, "imagenet")
    torch.save({"model": released_state_dict(model)}, tmp_path / "published.pth")
    config = folder / "config.yml"
    hf(tmp_path / "published.pth", tmp_path / "hub", "--config", str(config))
    written = json.loads((tmp_path / "hub/config.json").read_text())
    assert written["label_names"][0] == "n01440764" and len(written["label_names"]) == 1000
    assert "tench" in written["label_descriptions"]["n01440764"]


# ------------------------------------------------------------------------------------ the hub


class Api:
    """Stands in for huggingface_hub's."""

    sent: ClassVar[dict] = {}

    def create_repo(self, name, exist_ok):
        if name == "me/denied":
            raise huggingface_hub.errors.LocalTokenNotFoundError("no token")
        return type("", (), {"repo_id": name})

    def upload_folder(self, **given):
        self.sent.update(given)
        return "https://hub/me/net"


def test_push_sends_the_folder(run, tmp_path, monkeypatch, capsys):
    folder, _ = run
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    hf(folder / "best.pth", tmp_path / "hub", "--push", "me/net")
    assert Api.sent["repo_id"] == "me/net" and Api.sent["folder_path"] == tmp_path / "hub"
    assert "timm.create_model('hf-hub:me/net', pretrained=True)" in capsys.readouterr().out
    assert "hf-hub:me/net" in (tmp_path / "hub/README.md").read_text()
    argv = ("--checkpoint", folder / "best.pth", "--output", tmp_path / "hub", "--push")
    error = refused(capsys, *argv, "me/denied")
    assert "me/denied" in error and "no token" in error and "hf auth login" in error


def test_push_without_the_package(run, tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    argv = ("--checkpoint", run[0] / "best.pth", "--output", tmp_path / "hub", "--push", "me/net")
    assert "pip install huggingface_hub" in refused(capsys, *argv)
    assert not (tmp_path / "hub").exists()


# -------------------------------------------------------------------------------------- errors


class Own(LIF):
    """A neuron that has no name."""


@pytest.mark.parametrize(
    "model",
    [
        qkformer.fuse_for_inference(qkformer.create_model("qkformer_4_384", **SMALL).eval()),
        qkformer.create_model("qkformer_4_384", neuron=Own, **SMALL),
    ],
    ids=["folded", "own neuron"],
)
def test_what_could_not_be_built_again_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"built again|not serializable"):
        export_hf(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match="expected a model of qkformer, got Linear"):
        export_hf(torch.nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--output"),
        (("--output", "OUT", "--ssa", "both"), "choose one"),
        (("--output", "OUT", "--quantize", "int8"), "as they were trained"),
        (("--output", "OUT", "--data.image_size", "30"), "multiple of 4"),
        (("--output", "OUT", "--data.name", "cifar10-dvs"), "2 channels"),
        (("--output", "OUT", "--checkpoint", "FOLDER"), "qkformer.export hf"),
        (("--output", "OUT", "--checkpoint", "none.pth"), "no such file"),
        (("--output", "OUT", "--weights", "ema"), "no averaged weights"),
        (("--output", "OUT", "--config", "cifar10_qkformer.yaml"), "No such file"),
    ],
)
def test_bad_input_gets_one_line(run, options, message, tmp_path, capsys):
    places = {"OUT": tmp_path / "out", "FOLDER": tmp_path}
    argv = ["--checkpoint", run[0] / "best.pth", *(places.get(each, each) for each in options)]
    assert message in refused(capsys, *argv)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ the page


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    """In a folder that has what they name."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/demo_digits")
    published = released_state_dict(write_run(tmp_path / "run", "imagenet"))
    torch.save({"model": published}, "checkpoint-199.pth")
    known = load.KnownFile("an old friend", str(tmp_path / "run/config.yml"))
    monkeypatch.setitem(load.KNOWN_FILES, file_md5("checkpoint-199.pth"), known)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (tmp_path / "pictures").mkdir()
    for name in ("picture.png", "pictures/other.png"):
        Image.new("RGB", (32, 32), "red").save(name)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
             for line in block.splitlines()]  # fmt: skip
    assert len(lines) == 6
    for line in lines:
        python, m, module, *argv = line.split()
        assert (python, m) == ("python", "-m")
        {"qkformer.export": main, "qkformer.predict": predict}[module](argv)
    assert Api.sent["repo_id"] == "user/digits"
    assert (tmp_path / "qkformer_10_768/model.safetensors").exists()
    assert (tmp_path / "maps/picture_png.png").exists()


def test_the_examples_of_the_page_run():
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "hub.md", "exec"), {})
