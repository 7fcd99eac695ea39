"""How fast a study's variants train and predict, timed in turns: for the table of the study.

``python -m benchmarks.study FILE --output DIR`` writes DIR/speed.csv, which ``python -m
qkformer.studies table DIR`` takes in. Inputs are random, batches as the study trains with.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Contender, Step, compare
from qkformer.analysis.tables import Rows, as_csv, text
from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.registry import load_data
from qkformer.files import write_text
from qkformer.studies.study import Study, read_study
from qkformer.studies.table import SPEED
from qkformer.training.config import Config
from qkformer.training.distributed import World
from qkformer.training.environment import choose_device
from qkformer.training.learner import Learner
from qkformer.training.model import create_model


def main(arguments: list[str] | None = None) -> None:
    """The command line; returns when speed.csv is written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="of configs/studies")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(arguments)
    device = choose_device(options.device, World())
    rows = speeds(read_study(options.file), device, options.repeats)
    options.output.mkdir(parents=True, exist_ok=True)
    write_text(options.output / SPEED, as_csv(rows))
    print(text(rows))


def speeds(study: Study, device: torch.device, repeats: int) -> Rows:
    """A row per variant: images per second with quartiles, and times the first variant's."""
    rows = {variant.name: {"variant": variant.name} for variant in study.variants}
    batches = {each.name: each.config(0).data.batch_size for each in study.variants}
    for what, make in (("training", training_step), ("inference", inference)):
        contenders = [
            Contender(each.name, partial(make, each.config(0), device)) for each in study.variants
        ]
        for found in compare(contenders, device, repeats=repeats, items=1, memory=False):
            row, batch = rows[found["name"]], batches[found["name"]]
            if "not_measured" in found:
                row[f"{what} not measured"] = found["not_measured"]
                continue
            seconds = found["seconds"]
            row[f"{what} images/s"] = batch / seconds["median"]
            row[f"{what} images/s q1"] = batch / seconds["q3"]
            row[f"{what} images/s q3"] = batch / seconds["q1"]
            row[f"{what} ratio"] = found["ratio"]["median"]
    return list(rows.values())


def training_step(config: Config, device: torch.device) -> Step:
    """Forward, backward and update."""
    learner, x, y = _made(config, device)
    learner.model.train()

    def step() -> None:
        learner.step([(x, y)], config.optimizer.lr)

    return step


def inference(config: Config, device: torch.device) -> Callable[[], Tensor]:
    """Forward, without gradients."""
    learner, x, _ = _made(config, device)
    return torch.no_grad()(partial(learner.model.eval(), x))


def _made(config: Config, device: torch.device) -> tuple[Learner, Tensor, Tensor]:
    data = load_data(config.data, AugmentationConfig(), config.model.T, training=False)
    torch.manual_seed(0)
    learner = Learner(create_model(config, data), config, device, World())
    sample = data.prepare(data.test[0, 0][0].unsqueeze(0)).shape[1:]  # [C, H, W], events have T
    x = torch.randn(config.data.batch_size, *sample, device=device)
    y = torch.randint(data.num_classes, (len(x),), device=device)
    return learner, x, y


if __name__ == "__main__":
    main()
