"""Whole runs on a few images, of a network that fires: what the tests of training share."""

import json
from pathlib import Path

import torch
from same import VARYING
from torch.utils.data import TensorDataset

from qkformer.data.registry import DATASETS
from qkformer.data.source import ImageData
from qkformer.neurons import LIF, NEURONS
from qkformer.training import main

CONFIG = """
epochs: 4
seed: 4
model: {name: qkformer_4_384, T: 1, neuron: eager, drop_path_rate: 0.1}
data: {name: few, image_size: 8, batch_size: 4, crop_pct: 1.0}
augmentation: {shift: 1}
loss: {label_smoothing: 0.1}
optimizer: {lr: 0.005, weight_decay: 0.05}
schedule: {name: one_cycle, warmup_epochs: 1}
"""
# Given apart, so that a file may add more: a token and a self-attention, 22 layers of neurons.
SMALL = {"embed_dim": 16, "num_heads": 2, "depths": [1, 0, 1]}
CONFIG = CONFIG.replace("rate: 0.1}", f"rate: 0.1, args: {json.dumps(SMALL)}}}")


class Eager(LIF):
    """Fires in every layer of a network that has hardly been trained, which LIF does not."""

    def __init__(self, v_threshold: float = 0.1, **options) -> None:
        super().__init__(v_threshold=v_threshold, **options)


def few_images(config, *, T=None, training=True):
    """Two kinds of image that are easily told apart, and a third class that is not there."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 99, (76, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(76) % 2
    images[labels == 1, :, :4] += 150
    parts = [TensorDataset(images[part], labels[part]) for part in (slice(56), slice(56, 76))]
    return ImageData(*parts, num_classes=3, mean=(0.4,), std=(0.3,))


def register(patch=None) -> None:
    """Give data and neuron their names; for as long as a MonkeyPatch lasts, if there is one."""
    for registry, name, value in ((DATASETS, "few", few_images), (NEURONS, "eager", Eager)):
        if patch is None:
            registry[name] = value
        else:
            patch.setitem(registry, name, value)


def write_config(folder: Path, text: str = CONFIG) -> Path:
    file = folder / "few.yml"
    file.write_text(text)
    return file


def train(config, output, *options):
    main.train(config, ["--output", str(output), "--device", "cpu", *options])


def records(output):
    """Every line of metrics.jsonl; all of the network has fired in every epoch."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        assert min(line["firing_rate"].values()) > 0
    return lines


def metrics(output):
    """The records without what differs between two runs of one kind."""
    return [{k: v for k, v in line.items() if k not in VARYING} for line in records(output)]
