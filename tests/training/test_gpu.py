"""Training on a GPU: what there is no other test of. Skipped, visibly, without one."""

import json
from pathlib import Path

import pytest
import torch

from qkformer.training import main

DEMO = Path(__file__).parents[2] / "configs/demo_digits.yml"
SMALL = ["--epochs", "2", "--model.args.embed_dim", "32", "--device", "cuda"]

pytestmark = pytest.mark.gpu


def train(output, *options):
    main.train(DEMO, [*SMALL, "--output", str(output), *options])
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_precision_trains_and_tests_as_it_reported(tmp_path, precision):
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    options = ["--compute.precision", precision, "--optimizer.clip_grad_norm", "5"]
    lines = train(tmp_path, *options, "--optimizer.accumulation_steps", "2")
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    assert lines[1]["skipped_steps"] == 0 or precision == "fp16"
    assert lines[1]["memory_mib"] > 0
    main.test(tmp_path / "config.yml", ["--checkpoint", str(tmp_path / "last.pth")])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["acc1"] == pytest.approx(lines[1]["test_acc1"], abs=0.3)  # one image


@pytest.mark.parametrize(
    "option",
    [
        ["--compute.channels_last", "false"],
        ["--compute.compile", "true"],
        ["--compute.cuda_graph", "true"],
        ["--compute.cuda_graph", "false"],
        ["--compute.grad_checkpointing", "true"],
        ["--compute.sync_batchnorm", "true"],
        ["--optimizer.ema_decay", "0.9"],
        ["--augmentation.mixup_alpha", "0.5"],
        ["--augmentation.erasing_prob", "0.5", "--augmentation.erasing_mode", "pixel"],
        ["--data.workers", "2"],
    ],
    ids=" ".join,
)
def test_every_way_to_train_trains(tmp_path, option):
    assert train(tmp_path, *option)[1]["train_loss"] < 2.5


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    train(tmp_path / "run")
    lines = train(tmp_path / "run", "--epochs", "3", "--resume", str(tmp_path / "run/last.pth"))
    assert [line["epoch"] for line in lines] == [0, 1, 2]
