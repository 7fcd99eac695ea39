"""Commands that need no data set: macs, curves, theory, compare."""

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import qkformer
from qkformer.analysis import figures, logs, plots, tables
from qkformer.analysis.conventions import CONVENTIONS
from qkformer.analysis.log import cost
from qkformer.analysis.maps import AnalysisError
from qkformer.analysis.measure import measure
from qkformer.analysis.measurement import UNLISTED
from qkformer.analysis.published import published
from qkformer.analysis.theory import COMPLEXITY
from qkformer.commands import Parser, from_one
from qkformer.data.source import DataError
from qkformer.files import write_text
from qkformer.models.registry import sized
from qkformer.text import first_sentence, one_line


def parser(command: str, doc: str, usage: str = "") -> Parser:
    made = Parser(f"qkformer {command}", description=doc, allow_abbrev=False, epilog=usage)
    made.add_argument("--pdf", action="store_true", help="vector pictures instead of PNG")
    return made


def output(made: Parser) -> None:
    made.add_argument("--output", type=Path, default=Path("."), help="folder for what is written")


def into(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnalysisError(f"--output {folder}: {error.strerror}") from error
    return folder


def macs(argv: Sequence[str]) -> None:
    """Parameters and multiply-accumulates of every layer, without data or weights."""
    made = Parser("qkformer macs", description=macs.__doc__, allow_abbrev=False)
    made.add_argument("--model", required=True, help="registered name, or one of timm's")
    made.add_argument("--size", type=from_one, required=True, help="height and width, in pixels")
    made.add_argument("--args", type=_object, default={}, help="of the model, as JSON")
    options = made.parse_args(argv)
    try:
        with torch.device("meta"):
            once = {"T": 1} if options.model in qkformer.list_models() else {}
            args = sized(options.model, options.size) | once | options.args
            model = qkformer.create_model(options.model, **args)
            x = torch.empty(1, model.in_chans, options.size, options.size)
        measured = measure(model.eval(), [x])
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise AnalysisError(f"macs: {one_line(error)}") from error
    rows = [
        {
            "layer": layer.layer,
            "parameters": sum(p.numel() for p in model.get_submodule(layer.layer).parameters()),
            "MACs": layer.macs,
        }
        for layer in measured.layers
    ]
    rows += [
        {"layer": each.layer, "MACs": each.executed_macs}
        for each in measured.attention
        if hasattr(each, "executed_macs")
    ]
    if UNLISTED in measured.left_out:  # as softmax attention's products
        rows.append({"layer": "in no layer", "MACs": measured.left_out[UNLISTED]})
    parameters = sum(p.numel() for p in model.parameters())
    rows.append({"layer": "all, with BatchNorms", "parameters": parameters, "MACs": measured.macs})
    print(tables.text(rows))
    print(
        f"\n{options.model}, {options.size} px, one time step; SSA's products in the cheaper order"
    )


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected an object of JSON, got {text}")
    return found


def curves(argv: Sequence[str]) -> None:
    """Losses and accuracies of runs and published logs on one axis."""
    made = parser("curves", curves.__doc__)
    made.add_argument("runs", nargs="+", type=Path, help="folders of runs, or logs")
    output(made)
    options = made.parse_args(argv)
    runs = {str(path): logs.read(path) for path in options.runs}
    rows = [{"run": run, **row} for run, each in runs.items() for row in each]
    figures.save(plots.curves(runs), into(options.output) / "curves", rows, pdf=options.pdf)
    best = [
        {"run": run, "epochs": len(each), **max(each, key=lambda row: row.get("test_acc1", -1))}
        for run, each in runs.items()
    ]
    print("best epochs\n" + tables.text(best))


def theory(argv: Sequence[str]) -> None:
    """E and Var of SSA's and QKTA's sums, with measured ones; complexity, with measured scaling."""
    made = parser("theory", theory.__doc__)
    made.add_argument("--statistics", type=Path, help="statistics.csv of the command rates")
    made.add_argument("--scaling", type=Path, help="results of benchmarks.scaling, JSON")
    made.add_argument("--tokens", type=from_one, default=196, help="N of the curves")
    made.add_argument("--head_dim", type=from_one, default=64, help="channels per head of them")
    output(made)
    options = made.parse_args(argv)
    folder = into(options.output)
    rows = _read(options.statistics, _statistics) if options.statistics else []
    sizes = dict(tokens=options.tokens, head_dim=options.head_dim)
    figures.save(plots.theory(rows, **sizes), folder / "theory", rows or [sizes],
                 pdf=options.pdf)  # fmt: skip
    measured = _read(options.scaling, _scaling) if options.scaling else []
    complexity = [dict(row, **_slopes(measured, row["attention"])) for row in COMPLEXITY]
    write_text(folder / "complexity.csv", tables.as_csv(complexity))
    print(tables.text(complexity))
    if rows:
        print("\n" + tables.text(rows))


def _read(path: Path, how: Any) -> Any:
    try:
        return how(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read ({first_sentence(error)})") from error


def _statistics(path: Path) -> tables.Rows:
    rows = tables.read_csv(path)
    needed = ("layer", "f_q", "f_k", "mean", "E", "variance", "Var")
    if missing := [name for name in needed if name not in tables.columns(rows)]:
        raise ValueError(f"no column {', '.join(missing)}")
    return rows


def _scaling(path: Path) -> list[dict[str, Any]]:
    sections = json.loads(path.read_text())["scaling"]
    return [point for each in sections.values() for point in each["points"]]


def _slopes(points: list[dict[str, Any]], attention: str) -> dict[str, float]:
    """Exponents of time and memory in N and D, between the smallest and largest size measured."""
    found = {}
    quantities = {"time": lambda p: p["seconds"]["median"], "memory": lambda p: p.get("peak_mib")}
    for axis in "ND":
        # SSA's growth in the table is that of the stored N x N map
        these = sorted(
            (p for p in points
             if p["axis"] == axis and "seconds" in p and p["kind"].startswith(attention)
             and not p["kind"].endswith("(k^T v)")),
            key=lambda p: p[axis],
        )  # fmt: skip
        for name, of in quantities.items():
            if len(these) > 1 and of(these[0]) and of(these[-1]):
                first, last = these[0], these[-1]
                exponent = math.log(of(last) / of(first)) / math.log(last[axis] / first[axis])
                found[f"{name} ~ {axis}^"] = round(exponent, 2)
    return found


def compare(argv: Sequence[str]) -> None:
    """One table and scatter of runs and published rows: accuracy, energy, parameters, T."""
    made = parser("compare", compare.__doc__)
    made.add_argument("runs", nargs="*", type=Path, help="folders with energy.json of the command "
                      "energy and results.json of test.py, or metrics.jsonl")  # fmt: skip
    made.add_argument("--data", help="published rows of this data set (default: of the runs')")
    made.add_argument("--convention", choices=[*CONVENTIONS, "movement_no_reuse", "movement_ideal"],
                      default="qkformer", help="of the runs' energies")  # fmt: skip
    output(made)
    options = made.parse_args(argv)
    ours = [_ours(run, options.convention) for run in options.runs]
    data = {options.data} if options.data else {row["data"] for row in ours} or {"imagenet"}
    rows = ours + [row for row in published() if row["data"] in data]
    if not rows:
        raise DataError(f"compare: nothing is published of {', '.join(sorted(data))}; give runs")
    print(tables.text(rows))
    print("\nenergies of different conventions compare nothing")
    figures.save(plots.scatter(rows), into(options.output) / "compare", rows, pdf=options.pdf)


def _ours(run: Path, convention: str) -> dict[str, Any]:
    known = _read(run / "energy.json", partial(_costs, convention=convention))
    results = run / "results.json"
    if results.exists():
        accuracy = _read(results, lambda path: json.loads(path.read_text())["acc1"])
        source = "test.py"
    else:
        accuracy, source = logs.read(run)[-1].get("test_acc1"), "last epoch"
    return known | {"run": str(run), "top1": accuracy, "source": source}


def _costs(path: Path, convention: str) -> dict[str, Any]:
    """A row of energy.json; of an ANN, in the one convention that there is."""
    known = json.loads(path.read_text())
    energy, convention = cost(known, convention)
    return {
        "system": known["model"],
        "data": known["data"],
        "input": known["input_shape"][-1],
        "T": known["T"],
        "params_M": known["parameters"] / 1e6,
        "energy_mJ": energy,
        "ssa": known["ssa"],
        "convention": convention,
    }
