"""Rows (dictionaries) as text, as CSV, and what a measurement has to say in rows."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkformer.analysis.conventions import CONVENTIONS, of

if TYPE_CHECKING:
    from qkformer.analysis.measurement import Measurement

Rows = Sequence[dict[str, Any]]


def columns(rows: Rows) -> list[str]:
    """Names in any row, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def text(rows: Rows) -> str:
    """A table for the screen: words to the left, numbers to the right, four digits."""
    names = columns(rows)
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [any(isinstance(row.get(name), int | float) for row in rows) for name in names]
    lines = []
    for line in cells:
        padded = (
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, right, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(rows: Rows) -> str:
    """The same as a table of Markdown, cells as they are."""
    names = columns(rows)
    cells = ([str(row.get(name, "")) for name in names] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells))


def as_csv(rows: Rows) -> str:
    """The same with all digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, numbers as numbers, empty cells left out."""
    with path.open(newline="") as file:
        return [
            {name: _number(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def _number(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def layers(measured: "Measurement") -> list[dict[str, Any]]:
    """A row per layer and attention: what enters it, and mJ by convention."""
    rows = []
    for layer in measured.layers:
        row = {"layer": layer.layer, "kind": layer.kind, "MACs": layer.macs, "T": layer.steps}
        if layer.inputs is not None:
            row |= {"mean": layer.mean, "nonzero": layer.nonzero, "max": layer.input_max,
                    "SOPs": layer.sops}  # fmt: skip
        rows.append(row | {f"{name} mJ": mj for name, mj in of(layer).items()})
    for each in measured.attention:
        row = {"layer": each.layer, "kind": each.kind, "MACs": each.macs, "T": each.steps}
        rows.append(row | {f"{name} mJ": mj for name, mj in of(each).items()})
    return rows


def totals(measured: "Measurement") -> list[dict[str, Any]]:
    """A row per convention, and one for the network as an ANN."""
    rows = []
    for name, each in measured.energy().items():
        row = {"convention": name, "mJ": each["mJ"]}
        if name in CONVENTIONS:
            row |= {"MACs": float(each["macs"]), "additions": each["acs"]}
        rows.append(row)
    ann = measured.ann()
    return [*rows, {"convention": "the same as ANN", "mJ": ann["mJ"], "MACs": float(ann["macs"])}]


def report(measured: "Measurement") -> str:
    """Everything that belongs on the screen."""
    ann = measured.ann()
    once = any(layer.stem and layer.kind == "real" for layer in measured.layers)
    counted = f"{measured.model}, T {measured.T}, input {list(measured.input_shape)}"
    parts = [
        text(layers(measured)),
        f"{counted}, means of {measured.samples} samples; mJ and counts are per sample",
        text(totals(measured)),
        f"{ann['additions_per_mac']:.3g} additions (qkformer) per MAC of the network run once",
        "left out: " + ", ".join(f"{count:,} {name}" for name, count in measured.left_out.items()),
        *(["the image's convolution counts once, T times in spikingformer"] if once else []),
        *(f"note: {remark}" for remark in measured.remarks),
    ]
    return "\n\n".join(parts)
