"""docs/models.md and its data: true to the models, and up to date."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
import yaml
from published import PUBLISHED, golden

import qkformer
from qkformer.analysis.published import published
from qkformer.training.command_line import parse_train

DOCS = Path(__file__).parents[1] / "docs"
DATA = yaml.safe_load((DOCS / "models.yml").read_text())
MODELS = DATA["models"]
ROWS = [row for table in DATA["tables"] for row in table["rows"]]


def count(name: str, **options) -> int:
    create = qkformer.create_model if name in MODELS else timm.create_model
    with torch.device("meta"):
        return sum(p.numel() for p in create(name, **options).parameters())


def test_every_registered_model_is_there():
    assert sorted(MODELS) == qkformer.list_models()


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_counted(name):
    assert count(name) == MODELS[name]["parameters"]


@pytest.mark.parametrize("name", DATA["timm"])
def test_parameters_of_timms_models_are_as_counted(name):
    assert count(name) == DATA["timm"][name]


def test_what_is_called_exact_is_tested_to_be():
    exact = {name: entry["exact"] for name, entry in MODELS.items() if "exact" in entry}
    expected = {}
    for case, (name, _) in PUBLISHED.items():
        expected.setdefault(name, []).append(case)
    assert exact == expected
    for name, entry in MODELS.items():
        for case in entry.get("exact", []):
            if "nparams" in golden(case) and "num_classes" not in PUBLISHED[case][1]:
                published = entry.get("published", entry["parameters"])
                assert golden(case)["nparams"] == published, name


@pytest.mark.parametrize(
    "row", [row for row in ROWS if "millions" in row], ids=lambda r: r["system"]
)
def test_printed_millions_are_the_models_but_where_said(row):
    options = {"num_classes": row["classes"]} if "classes" in row else {}
    millions = count(row["model"], **options) / 1e6
    assert abs(millions - row["millions"]) < 0.025 or "note" in row


def test_rows_name_what_they_use():
    for row in ROWS:
        assert row["model"] in MODELS or row["model"] in DATA["timm"]
        assert "top1" not in row or row["source"] in DATA["sources"]
        assert "energy" not in row or row["convention"] in DATA["conventions"]


DATA_OF = {
    "ImageNet-1k": ("imagenet",),
    "CIFAR10 / CIFAR100": ("cifar10", "cifar100"),
    "DVS128 Gesture / CIFAR10-DVS": ("dvs128-gesture", "cifar10-dvs"),
}


def test_the_analysis_has_the_same_published_numbers():
    rows = [
        (row, data, float(top1))
        for table in DATA["tables"]
        for row in table["rows"]
        if row.get("source") in ("paper", "ms", "max")
        for data, top1 in zip(DATA_OF[table["title"]], str(row["top1"]).split(" / "), strict=True)
    ]
    assert len(rows) > 40
    for row, data, top1 in rows:
        pixels = row.get("px", 224) if data == "imagenet" else None
        (known,) = (
            each
            for each in published()
            if (each["model"], each["data"]) == (row["model"], data)
            and each.get("T", row.get("T")) == row.get("T", 1)
            and pixels in (None, each["input"])
            and "leak removed" not in each["system"]
        )
        assert (known["top1"], known.get("energy_mJ")) == (top1, row.get("energy")), row
        if "millions" in row and "params_M" in known:
            assert abs(known["params_M"] - row["millions"]) < 0.05, row


def test_configs_are_of_the_models_and_time_steps_of_their_rows():
    for row in ROWS:
        for name in row.get("config", []):
            config, _ = parse_train(DOCS.parent / "configs" / f"{name}.yml", [])
            assert config.model.name == row["model"], name
            assert config.model.T in (None, row.get("T"), 1 if "x" in str(row.get("T")) else None)


def test_the_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("render", DOCS / "render.py")
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    page = (DOCS / "models.md").read_text()
    assert page == render.render(DATA), "python docs/render.py makes it"
