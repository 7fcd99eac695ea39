"""Training logs of this project and of the published ones, as rows with one set of names.

A row per epoch: epoch, and of train_loss, test_loss, test_acc1, test_acc5 (percent) what the log
has. Where an epoch was run twice, as after a resume, its last line counts.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qkformer.analysis.plots import PANELS
from qkformer.data.source import DataError

Row = dict[str, Any]
NUMBER = r"([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)"
TIMM_SUMMARY = {"train_loss": "train_loss", "eval_loss": "test_loss", "eval_top1": "test_acc1",
                "eval_top5": "test_acc5"}  # fmt: skip


def read(path: Path) -> list[Row]:
    """A run's folder, or a log in any of these forms, told apart by its content:

    metrics.jsonl, and the ``log.txt`` of the ImageNet release: JSON lines;
    timm's ``summary.csv``; console logs of timm's script (CIFAR), of the ImageNet and of the event
    scripts of the release.

    Raises:
        DataError: it cannot be read, or has no epoch in it.
    """
    file = path / "metrics.jsonl" if path.is_dir() else path
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as a log ({type(error).__name__})") from error
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("{"):
        rows = _json_lines(file, lines)
    elif first.startswith("epoch,"):
        rows = _summary(file, lines)
    else:
        rows = _console(lines)
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise DataError(f"{file}: there is no epoch in it; logs are JSON lines, summary.csv or the "
                        "console's of the published scripts")  # fmt: skip
    return rows


def _json_lines(file: Path, lines: Iterable[str]) -> list[Row]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            rows.append({"epoch": int(record["epoch"])} | _known(record))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: line {number} has no epoch and its numbers") from error
    return _last_of_each(rows)


def _known(record: Row) -> Row:
    return {key: float(record[key]) for key in PANELS if record.get(key) is not None}


def _summary(file: Path, lines: Iterable[str]) -> list[Row]:
    rows = []
    for number, record in enumerate(csv.DictReader(lines), start=2):
        if record["epoch"] == "epoch":  # the header again, where a run was resumed
            continue
        named = {ours: record.get(theirs) or None for theirs, ours in TIMM_SUMMARY.items()}
        try:
            rows.append({"epoch": int(record["epoch"])} | _known(named))
        except ValueError as error:
            raise DataError(f"{file}: line {number} has no epoch and its numbers") from error
    return _last_of_each(rows)


def _last_of_each(rows: Iterable[Row]) -> list[Row]:
    by_epoch = {row["epoch"]: row for row in rows}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


# ------------------------------------------------------------------------------------ consoles
# In each a training epoch is told of before its test; where no line numbers the epochs, they are
# counted.

_TIMM_TRAIN = re.compile(rf"Train: (\d+) \[ *(\d+)/(\d+).*?Loss: +{NUMBER} +\( *{NUMBER}\)")
_TIMM_TEST = re.compile(
    rf"Test(?: \(EMA\))?: +\[ *(\d+)/(\d+)\].*?Loss: +{NUMBER} +\( *{NUMBER}\)"
    rf".*?Acc@1: +{NUMBER} +\( *{NUMBER}\).*?Acc@5: +{NUMBER} +\( *{NUMBER}\)"
)
_IMAGENET_TRAIN = re.compile(rf"Averaged stats: .*?loss: {NUMBER} \({NUMBER}\)")
_IMAGENET_TEST = re.compile(rf"\* Acc@1 {NUMBER} Acc@5 {NUMBER} loss {NUMBER}")
_DVS_TRAIN = re.compile(rf"Epoch: \[(\d+)\].*?loss: {NUMBER} \({NUMBER}\)")
_DVS_TEST = re.compile(rf"\* Acc@1 = {NUMBER}, Acc@5 = {NUMBER}, loss = {NUMBER}")


def _console(lines: Iterable[str]) -> list[Row]:
    rows: list[Row] = []
    for line in lines:
        for pattern, take in _LINES.items():
            if match := pattern.search(line):
                take(rows, match.groups())
                break
    # an epoch that was cut off before its test, or a test without training, is none
    return _last_of_each(row for row in rows if "test_acc1" in row)


def _of_epoch(rows: list[Row], epoch: int) -> Row:
    if not rows or rows[-1]["epoch"] != epoch:
        rows.append({"epoch": epoch})
    return rows[-1]


def _timm_train(rows: list[Row], found: tuple[str, ...]) -> None:
    _of_epoch(rows, int(found[0]))["train_loss"] = float(found[4])


def _timm_test(rows: list[Row], found: tuple[str, ...]) -> None:
    at, end = int(found[0]), int(found[1])
    if at == end and rows:
        loss, acc1, acc5 = (float(found[i]) for i in (3, 5, 7))
        rows[-1] |= {"test_loss": loss, "test_acc1": acc1, "test_acc5": acc5}


def _imagenet_train(rows: list[Row], found: tuple[str, ...]) -> None:
    rows.append({"epoch": len(rows), "train_loss": float(found[1])})


def _dvs_train(rows: list[Row], found: tuple[str, ...]) -> None:
    _of_epoch(rows, int(found[0]))["train_loss"] = float(found[2])


def _test(rows: list[Row], found: tuple[str, ...]) -> None:
    if not rows or "test_acc1" in rows[-1]:
        rows.append({"epoch": rows[-1]["epoch"] + 1 if rows else 0})
    acc1, acc5, loss = map(float, found)
    rows[-1] |= {"test_loss": loss, "test_acc1": acc1, "test_acc5": acc5}


_LINES: dict[re.Pattern, Callable[[list[Row], tuple[str, ...]], None]] = {
    _TIMM_TRAIN: _timm_train,
    _TIMM_TEST: _timm_test,
    _IMAGENET_TRAIN: _imagenet_train,
    _IMAGENET_TEST: _test,
    _DVS_TRAIN: _dvs_train,
    _DVS_TEST: _test,
}
