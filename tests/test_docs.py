"""The README's examples run, in order, as one program; its paths exist; its table is right."""

import re
from pathlib import Path

import pytest
import torch

import qkformer
from qkformer.data.registry import DATASETS
from qkformer.layers import MIXERS
from qkformer.neurons import NEURONS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _registries_as_before():
    before = [(registry, dict(registry)) for registry in (MIXERS, NEURONS, DATASETS)]
    yield
    for registry, content in before:
        registry.clear()
        registry.update(content)


def test_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 6
    program: dict = {}
    for block in blocks:
        if "doctest: skip" not in block:  # needs a file that nobody may ship
            exec(compile(block, "README.md", "exec"), program)


def test_parameters_in_the_table_are_the_models():
    rows = re.findall(r"^\| `(\w+_\d+)`.*", README, re.MULTILINE)
    assert len(rows) > 10
    for name in rows:
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        with torch.device("meta"):
            model = qkformer.create_model(name)
        assert f"{sum(p.numel() for p in model.parameters()):,}" in row


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"\b(DEMO|DATASETS?|TRAINING)_[A-Z]+\b|TODO|FIXME", README)


def test_paths_exist():
    folders = "configs|imagenet|cifar100?|dvs128-gesture|cifar10-dvs|qkformer|tests"
    for path in re.findall(rf"(?:^|[\s`])((?:{folders})/[\w./]+[\w/])", README, re.MULTILINE):
        assert (ROOT / path).exists(), path
