"""test.py on a file of every family as its authors' training script writes it."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import firing, make_model
from families import FAMILIES
from published import PUBLISHED, publish, published_shapes
from torch.utils.data import TensorDataset

import qkformer
from qkformer.checkpoint.released import unused_keys
from qkformer.data.image_transforms import Normalise
from qkformer.data.registry import DATASETS
from qkformer.data.source import EventData, ImageData
from qkformer.training import main

pytestmark = pytest.mark.slow

CASES = {name: case for case, (name, _) in PUBLISHED.items()}
CONFIG = """
epochs: 1
model: {name: %s, T: %s, args: %s}
data: {name: few, image_size: %s, batch_size: 4, crop_pct: 1.0}
optimizer: {lr: 0.001}
schedule: {name: one_cycle}
"""
LABELS = torch.arange(6) % 10


@pytest.fixture
def written(monkeypatch, tmp_path):
    """A small network's configuration, its published file, and input and logits of its test."""

    def write(name):
        options = {key: value for key, value in FAMILIES[name].items() if key != "img_size"}
        if name.endswith("2_256"):
            options["T"] = 2
        model = make_model(name, num_classes=10, **options).float()
        events = model.in_chans == 2
        size = 128 if name.startswith("stsa") else max(32, 4 * model.downsampling)
        generator = torch.Generator().manual_seed(0)
        if events:
            x = torch.poisson(torch.full((6, model.T, 2, size, size), 0.5), generator=generator)
            samples = TensorDataset(x.short(), LABELS)
            data = EventData(samples, samples, num_classes=10, size=size)
        else:
            images = torch.randint(256, (6, 3, size, size), generator=generator)
            samples = TensorDataset(images.byte(), LABELS)
            data = ImageData(samples, samples, 10, mean=(0.5,) * 3, std=(0.25,) * 3)
            x = Normalise(data.mean, data.std)(images.byte())
        monkeypatch.setitem(DATASETS, "few", lambda *_args, **_kwargs: data)
        T = options.pop("T", "null")
        (tmp_path / "few.yml").write_text(CONFIG % (name, T, json.dumps(options), size))
        state, unused = model.state_dict(), {}
        if name in CASES:
            state = qkformer.released_state_dict(model)
            pattern = unused_keys(model)
            keys = filter(pattern.fullmatch, published_shapes(CASES[name]))
            unused = {key: torch.ones(3) for key in keys}
        publish(state | unused, CASES.get(name, name), tmp_path / "published.pth")
        with torch.no_grad(), firing() as fired:
            logits = torch.cat([model(batch) for batch in x.split(4)])
        assert all(fired.values()) and logits.std() > 0.1
        return model, list(unused), logits

    return write


def run_test(folder, *options):
    checkpoint = f"--checkpoint={folder / 'published.pth'}"
    main.test(folder / "few.yml", [checkpoint, "--device=cpu", *options])
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_measured_and_what_is_unused_is_dropped_by_name(name, written, tmp_path):
    model, unused, logits = written(name)
    results = run_test(tmp_path)
    assert results["model"] == name and results["images"] == 6
    assert results["parameters"] == sum(p.numel() for p in model.parameters())
    assert results["loss"] == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-5)
    hits = (logits.argmax(1) == LABELS).double().mean().item()
    assert results["acc1"] == pytest.approx(100 * hits)
    report = qkformer.load_checkpoint(model, tmp_path / "published.pth")
    assert report.published == (name in CASES)
    assert sorted(report.dropped) == sorted(unused)
    assert bool(unused) == name.startswith(("spik", "cml", "sdt", "stsa", "mst"))


@pytest.mark.parametrize("stsa", ["fixed", "original"])
def test_the_fault_of_stsa_is_an_argument_that_a_test_takes(stsa, written, tmp_path):
    written("stsa_2_256")
    losses = [
        run_test(tmp_path, f"--model.args.stsa={stsa}", f"--data.batch_size={batch}")["loss"]
        for batch in (2, 3)
    ]
    assert (abs(losses[0] - losses[1]) > 1e-3) == (stsa == "original")
