"""Every command from a checkpoint or a log to its files, and what it refuses."""

import csv
import json
from dataclasses import asdict

import pytest
import torch
from conftest import make_model
from families import FAMILIES
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import qkformer
from qkformer.analysis import log, measure, source
from qkformer.analysis.__main__ import COMMANDS, main
from qkformer.analysis.published import beside, published
from qkformer.data.registry import DATASETS
from qkformer.data.source import EventData, ImageData
from qkformer.training.command_line import parse_train

pytestmark = pytest.mark.slow

CONFIG = """
epochs: 4
model: {name: %s, T: 2, args: {embed_dim: 16, num_heads: 2}}
data: {name: few, image_size: 16, batch_size: 4, crop_pct: 1.0}
optimizer: {lr: 0.005}
schedule: {name: one_cycle}
"""


def few(config, *, T=None, training=True):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (6, 3, 16, 16), dtype=torch.uint8, generator=generator)
    data = TensorDataset(images, torch.arange(6) % 3)
    return ImageData(data, data, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)


def few_events(config, *, T=None, training=True):
    generator = torch.Generator().manual_seed(0)
    frames = torch.poisson(torch.full((6, T, 2, 32, 32), 0.5), generator=generator).short()
    data = TensorDataset(frames, torch.arange(6) % 3)
    return EventData(data, data, num_classes=10, size=32)


def write(folder, name, text):
    """A run's folder with a checkpoint of a network that fires."""
    (folder / "config.yml").write_text(text)
    trained = parse_train(folder / "config.yml", [])[0]
    model = make_model(name, num_classes=10, **trained.model.arguments()).float()
    content = {"model": model.state_dict(), "config": asdict(trained), "epoch": 3}
    torch.save(content, folder / "last.pth")
    return model


@pytest.fixture(scope="module", autouse=True)
def data():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "few", few)
        patch.setitem(DATASETS, "few-events", few_events)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A run's folder; what commands on it leave there is used by others."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, "qkformer_4_384", CONFIG % "qkformer_4_384")
    metrics = {"epoch": 0, "train_loss": 2.0, "test_loss": 1.0, "test_acc1": 50.0}
    (folder / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    return folder


def command(name, run, *options):
    main([name, "--checkpoint", str(run / "last.pth"), "--device", "cpu", *options])


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_picture(path):
    start = path.read_bytes()[:4]
    return start == (b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")


def test_energy_and_compare(run, tmp_path, capsys):
    command("energy", run)
    out = capsys.readouterr().out
    assert "qkformer" in out and "left out: " in out and "no estimate" not in out
    written = json.loads((run / "energy.json").read_text())
    with source.opened(["--checkpoint", str(run / "last.pth"), "--device", "cpu"]) as opened:
        measured = measure(opened.model, [x for x, _ in opened.batches()])
        assert measure(opened.model, [torch.cat([x for x, _ in opened.batches()])]) == measured
    assert written["energy"] == json.loads(json.dumps(measured.energy())) and written["B"] == 6
    assert is_picture(run / "energy.png")
    layers = rows(run / "energy.csv")
    total = sum(float(row["events mJ"]) for row in layers)
    assert total == pytest.approx(written["energy"]["events"]["mJ"], rel=1e-12)
    parts = {row.pop("convention"): row for row in rows(run / "energy_parts.csv")}
    shown = sum(float(value) for value in parts["qkformer"].values() if value)
    assert shown == pytest.approx(written["energy"]["qkformer"]["mJ"], rel=1e-12)

    main(["compare", str(run), "--data", "cifar10", "--output", str(tmp_path), "--pdf"])
    ours, *others = rows(tmp_path / "compare.csv")
    assert (ours["system"], ours["top1"], ours["convention"]) == ("qkformer_4_384", "50.0",
                                                                  "qkformer")  # fmt: skip
    assert float(ours["energy_mJ"]) == written["energy"]["qkformer"]["mJ"]
    assert len(others) == len([row for row in published() if row["data"] == "cifar10"]) > 5
    assert is_picture(tmp_path / "compare.pdf")
    (run / "results.json").write_text('{"acc1": 60.0}')
    main(["compare", str(run), "--output", str(tmp_path)])
    assert [row["top1"] for row in rows(tmp_path / "compare.csv")] == ["60.0"]


def test_rates_and_theory(run, tmp_path, capsys):
    command("rates", run, "--batches", "1", "--output", str(tmp_path))
    written = json.loads((tmp_path / "rates.json").read_text())
    assert written["samples"] == 4
    first = written["table"][0]
    assert {"Q", "K", "A_t", "X'", "X''", "MLP1", "MLP2"} <= first.keys() and first["X'"] > 0
    assert first["X'"] <= min(first["K"], first["A_t"])
    means = [row for row in written["table"] if "mean of" in row["block"]]
    assert len(means) == 3
    blocks = [row for row in written["table"] if row["block"].startswith("stages.2.blocks")]
    assert means[-1]["V"] == pytest.approx(sum(row["V"] for row in blocks) / 2)
    steps = [row for row in rows(tmp_path / "rates.csv") if row["neuron"].endswith("0.neuron")]
    assert {row["t"] for row in steps} == {"0", "1"} and is_picture(tmp_path / "rates.png")

    scaling = [{"axis": "N", "kind": "QKTA", "N": n, "seconds": {"median": n}, "peak_mib": n * n}
               for n in (10, 1000)]  # fmt: skip
    benchmark = tmp_path / "scaling.json"
    benchmark.write_text(json.dumps({"scaling": {"a label": {"points": scaling}}}))
    main(["theory", "--statistics", str(tmp_path / "statistics.csv"), "--scaling", str(benchmark),
          "--output", str(tmp_path)])  # fmt: skip
    assert is_picture(tmp_path / "theory.png")
    qkta = next(r for r in rows(tmp_path / "complexity.csv") if r["attention"] == "QKTA")
    assert (qkta["time ~ N^"], qkta["memory ~ N^"]) == ("1.0", "2.0")
    for row in rows(tmp_path / "theory.csv"):
        if not row["f_v"]:  # the mean of a sum is the sum of the means, whatever depends on what
            assert float(row["mean"]) == pytest.approx(float(row["E"]))
    main(["theory", "--output", str(tmp_path)])  # and without anything measured


def test_attention(run, tmp_path):
    command("attention", run, "--output", str(tmp_path), "--samples", "1", "--token", "3")
    numbers = json.loads((tmp_path / "attention.json").read_text())
    assert len(numbers) == 2 + 2 * 2 + 3 + 1  # masks; sums and queries; stages; Grad-CAM
    mask = torch.tensor(numbers["token mask\n1 1 mixer"])
    assert mask.shape == (1, 16, 16) and 0 < mask.mean() < 1
    assert is_picture(tmp_path / "attention.png") and is_picture(tmp_path / "matrices.png")
    assert {"Q", "K", "A_t", "X'"} == json.loads((tmp_path / "matrices.json").read_text())[
        "stages.0.blocks.0.mixer.branch"
    ].keys()
    picture = tmp_path / "picture.jpg"
    Image.new("L", (40, 20), 90).save(picture)
    command("attention", run, "--output", str(tmp_path), "--images", str(picture), "--classes", "1")
    numbers = json.loads((tmp_path / "attention.json").read_text())
    assert any("Grad-CAM" in name and name.endswith("of 1") for name in numbers)


def test_confusion(run, tmp_path, capsys):
    command("confusion", run, "--output", str(tmp_path))
    table = rows(tmp_path / "confusion.csv")
    assert [int(row["samples"]) for row in table] == [2, 2, 2, *[0] * 7]
    with source.opened(["--checkpoint", str(run / "last.pth"), "--device", "cpu"]) as opened:
        pairs = []
        for x, labels in opened.batches():
            predicted = opened.model(x).argmax(1).tolist()
            pairs += zip(labels.tolist(), predicted, strict=True)
    for true, row in enumerate(table):
        counts = {int(k): int(v) for k, v in row.items() if k.isdigit()}
        assert counts == {p: pairs.count((true, p)) for p in range(10)}
    assert is_picture(tmp_path / "confusion.png")


def test_event_frames(tmp_path):
    text = (CONFIG % "qkformer_2_256").replace("few", "few-events").replace(", crop_pct: 1.0", "")
    write(tmp_path, "qkformer_2_256", text.replace("16, batch", "32, batch"))
    command("attention", tmp_path, "--samples", "1")
    command("energy", tmp_path)
    first = json.loads((tmp_path / "energy.json").read_text())["layers"][0]
    assert first["kind"] == "integer" and first["input_sum"] > 0
    assert is_picture(tmp_path / "attention.png")


@pytest.mark.parametrize(
    ("name", "drawn"), [("resnet19_snn", 4), ("resnet19", 1)], ids=["spiking", "ANN"]
)
def test_networks_without_attention_have_the_other_maps(tmp_path, name, drawn, capsys):
    text = (CONFIG % name).replace("embed_dim: 16, num_heads: 2", json.dumps(FAMILIES[name])[1:-1])
    write(tmp_path, name, text)
    command("attention", tmp_path, "--samples", "2")
    assert f"{drawn} maps of 2 samples" in capsys.readouterr().out
    assert is_picture(tmp_path / "attention.png") and not (tmp_path / "matrices.png").exists()
    if drawn == 1:
        with pytest.raises(SystemExit):
            command("rates", tmp_path)
        assert capsys.readouterr().err == "error: rates: resnet19 has no neurons\n"


def test_curves(run, tmp_path):
    main(["curves", str(run), str(run / "metrics.jsonl"), "--output", str(tmp_path)])
    assert len(rows(tmp_path / "curves.csv")) == 2 and is_picture(tmp_path / "curves.png")


def test_macs(capsys):
    main(["macs", "--model", "qkformer_10_384", "--size", "224"])
    total = capsys.readouterr().out.splitlines()[-3]
    assert total.split()[-2:] == ["16473688", "5898673152"]


@pytest.mark.parametrize(
    ("name", "size", "gmacs"), [("vit_base_patch16_384", 384, 55.484), ("resnet19", 32, 2.2165)]
)
def test_macs_of_networks_without_time(name, size, gmacs, capsys):
    main(["macs", "--model", name, "--size", str(size)])
    *layers, total = [
        int(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[1:-2]
    ]  # fmt: skip
    assert sum(layers) == total == pytest.approx(1e9 * gmacs, rel=1e-4)


def test_an_ann_is_compared_by_all_of_its_macs(tmp_path):
    ann = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    measured = measure(ann, [torch.randn(1, 3, 8, 8)])
    facts = {"data": "cifar10", "ssa": None, "parameters": 5}
    log.write_energy(measured, tmp_path, **facts)
    (tmp_path / "results.json").write_text('{"acc1": 60.0}')
    main(["compare", str(tmp_path), "--output", str(tmp_path)])
    ours, *_ = rows(tmp_path / "compare.csv")
    assert ours["convention"] == "ann"
    assert float(ours["energy_mJ"]) == pytest.approx(4.6e-9 * measured.executed_macs)


def test_what_training_logs_of_its_last_model(tmp_path):
    model = make_model("qkformer_4_384", embed_dim=16, num_heads=2, T=2)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    facts = {"data": "cifar10", "ssa": "fixed", "parameters": 5_000_000}
    scalars = log.log_energy(model, [x], tmp_path, **facts)
    measured = measure(model, [x])
    assert scalars["energy_mJ/qkformer"] == measured.energy()["qkformer"]["mJ"]
    rates = [value for name, value in scalars.items() if name.startswith("rates/")]
    assert rates == [neuron.rate for neuron in measured.neurons]
    assert json.loads((tmp_path / "energy.json").read_text())["data"] == "cifar10"


def test_published_rows_have_a_source_and_are_found_by_model_size_and_steps():
    assert all(row["source"] and row["system"] and row["data"] for row in published())
    with torch.device("meta"):
        model = qkformer.create_model("qkformer_10_384", T=4)
        x = torch.empty(1, 3, 224, 224)
    (row,) = beside(measure(model, [x]))
    assert row["energy_mJ"] == 15.13 and row["ssa"] == "original"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["enrgy"], "did you mean 'energy'"),
        (["energy"], "--checkpoint: required"),
        (["energy", "--checkpoint", "/nope"], "no such file"),
        (["rates", "--checkpoint", "RUN", "--model.neuron", "if"], "trained with another model"),
        (["rates", "--checkpoint", "RUN", "--batches", "-1"], "--batches: expected a number from"),
        (["attention", "--checkpoint", "RUN", "--samples", "0"], "--samples: expected a number"),
        (["energy", "--checkpoint", "RUN", "--model.args.embed_dim", "32"], "does not fit"),
        (["energy", "--checkpoint", "RUN", "--ssa", "both"], "choose one"),
        (["attention", "--checkpoint", "RUN", "--layer", "stages.9"], "no layer 'stages.9'"),
        (["attention", "--checkpoint", "RUN", "--images", "/nope"], "/nope: cannot be read as"),
        (["attention", "--checkpoint", "RUN", "--head", "7"], "has 2 steps and 2 heads"),
        (["macs", "--model", "qkformer_10_38", "--size", "224"], "did you mean"),
        (["macs", "--model", "qkformer_10_384", "--size", "225"], "multiples of 16"),
        (["macs", "--model", "qkformer_10_384"], "--size"),
        (["macs", "--model", "resnet18", "--size", "0"], "--size: expected a number from 1"),
        (["macs", "--model", "resnet18", "--size", "9", "--args", "[1]"], "expected an object"),
        (["curves", "/nope"], "cannot be read as a log"),
        (["compare", "/nope"], "energy.json: cannot be read"),
        (["compare", "--data", "digits"], "nothing is published of digits"),
        (["compare", "OTHER"], "energy.json: cannot be read ('neurons')"),
        (["compare", "--convention", "x"], "--convention: invalid choice: 'x'"),
        (["theory", "--scaling", "/nope"], "cannot be read"),
        (["theory", "--scaling", "OTHER/energy.json"], "cannot be read ('scaling')"),
        (["theory", "--statistics", "OTHER/energy.json"], "cannot be read (no column layer, f_q"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line(run, argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER/energy.json").write_text("{}")
    argv = [str(run / "last.pth") if each == "RUN" else each for each in argv]
    with pytest.raises(SystemExit) as stop:
        main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error
    assert error.startswith("error: ")
    # what does not fit is listed as test.py lists it
    assert error.count("\n") == 1 or "does not fit the model in" in error.splitlines()[0]


def test_help_names_every_command(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
