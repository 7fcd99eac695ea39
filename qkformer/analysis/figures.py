"""Figures that a paper could print: from rows and arrays to matplotlib, legible in grey.

Each returns a figure; :func:`save` writes it, and its numbers beside it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qkformer.analysis.tables import Rows, as_csv
from qkformer.files import write_text

DOTS = 150  # per inch, of a PNG
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "+++", "***")
LINES = ("-", "--", ":", "-.")
MARKERS = "osv^Dxp*"


def new(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, stem: Path, numbers: Rows | dict[str, Any], *, pdf: bool = False) -> None:
    """STEM.png (or .pdf), and STEM.csv of rows or STEM.json of anything else."""
    draw(figure, stem, pdf=pdf)
    if isinstance(numbers, dict):
        write_text(stem.with_suffix(".json"), json.dumps(numbers, indent=1) + "\n")
    else:
        write_text(stem.with_suffix(".csv"), as_csv(numbers))


def draw(figure: Figure, stem: Path, *, pdf: bool = False) -> None:
    """STEM.png, or STEM.pdf with lines and letters as such."""
    figure.savefig(stem.with_suffix(".pdf" if pdf else ".png"), dpi=DOTS)


def energy_bars(breakdowns: Mapping[str, Mapping[str, float]]) -> Figure:
    """Stacked bars by part of the network, a bar per model or convention: mJ, and shares."""
    parts = list(dict.fromkeys(part for bars in breakdowns.values() for part in bars))
    totals = np.array([sum(bars.values()) for bars in breakdowns.values()])
    figure = new(2.8 + 1.7 * len(breakdowns), 3.8)
    both = figure.subplots(1, 2)
    for axes, whole in zip(both, (np.ones(len(totals)), np.maximum(totals, 1e-30) / 100),
                           strict=True):  # fmt: skip
        bottom = np.zeros(len(totals))
        for i, part in enumerate(parts):
            values = np.array([bars.get(part, 0.0) for bars in breakdowns.values()]) / whole
            grey = str(0.35 + 0.6 * i / max(len(parts) - 1, 1))
            axes.bar(list(breakdowns), values, 0.65, bottom, color=grey, edgecolor="black",
                     linewidth=0.5, hatch=HATCHES[i % len(HATCHES)], label=part)  # fmt: skip
            bottom += values
        axes.tick_params(axis="x", labelsize=8)
    for x, total in enumerate(totals):
        both[0].annotate(f"{total:.3g}", (x, total), ha="center", va="bottom", fontsize=8)
    both[0].set_ylabel("energy per sample (mJ)")
    both[1].set_ylabel("share of the energy (%)")
    handles, labels = both[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize="small")
    return figure


def rates(rows: Rows) -> Figure:
    """Firing rates of :func:`qkformer.analysis.rates.by_step`: a line per time step."""
    neurons = list(dict.fromkeys(row["neuron"] for row in rows))
    steps = sorted({row["t"] for row in rows})
    figure = new(0.17 * len(neurons) + 2.5, 4.2)
    axes = figure.subplots()
    for t in steps:
        values = [row["rate"] for row in rows if row["t"] == t]
        grey = str(0.7 * (1 - t / max(len(steps) - 1, 1)))
        axes.plot(values, marker=MARKERS[t % len(MARKERS)], markersize=3.5, linewidth=0.8,
                  color=grey, label=f"t = {t}")  # fmt: skip
    axes.set_xticks(range(len(neurons)), [short(name) for name in neurons], rotation=90,
                    fontsize=6)  # fmt: skip
    axes.set_ylabel("spikes per neuron and step")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small", ncols=max(1, len(steps) // 4))
    return figure


def short(path: str) -> str:
    """ "stages.0.blocks.1.mixer.branch.q.neuron" -> "1.1 mixer q" """
    left_out = {"stages", "blocks", "branch", "neuron", "convs"}
    parts = [part for part in path.split(".") if part not in left_out]
    numbers = [str(int(part) + 1) if part.isdigit() else part for part in parts]
    return " ".join(numbers).replace("mask_neuron", "A").replace("attn_neuron", "attn")


def overlays(
    images: np.ndarray, maps: Mapping[str, np.ndarray], titles: Sequence[str] = ()
) -> Figure:
    """Images [B, H, W(, 3)] in 0..1 (or summed event frames), and maps [B, H, W] drawn over them.

    A row per sample; each map has a colour bar of its own scale.
    """
    rows, columns = len(images), 1 + len(maps)
    figure = new(1.75 * columns, 1.5 * rows + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False)
    for b, row in enumerate(grid):
        _picture(row[0], images[b])
        if titles:
            row[0].set_ylabel(titles[b], fontsize="small")
        for axes, (name, values) in zip(row[1:], maps.items(), strict=True):
            _picture(axes, images[b])
            drawn = axes.imshow(values[b], cmap="inferno", alpha=0.65, vmin=0)
            bar = figure.colorbar(drawn, ax=axes, shrink=0.7, pad=0.02)
            bar.ax.tick_params(labelsize=5)
            if b == 0:
                axes.set_title(name, fontsize="x-small")
    grid[0][0].set_title("input", fontsize="x-small")
    return figure


def _picture(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, cmap="gray")
    axes.set_xticks([])
    axes.set_yticks([])


def matrices(layers: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """The paper's figure: a row per attention, channels against tokens, 1 white, 0 black."""
    columns = max(len(each) for each in layers.values())
    figure = new(2.2 * columns + 0.6, 1.6 * len(layers) + 0.3)
    grid = figure.subplots(len(layers), columns, squeeze=False)
    for row, (layer, each) in zip(grid, layers.items(), strict=True):
        for axes in row[len(each) :]:
            axes.axis("off")
        for axes, (name, matrix) in zip(row, each.items(), strict=False):
            # a mask of one row is shown as a band
            matrix = np.repeat(matrix, 2, axis=0) if matrix.shape[0] == 1 else matrix
            axes.imshow(matrix, cmap="gray", vmin=0, vmax=max(matrix.max(), 1), aspect="auto",
                        interpolation="nearest")  # fmt: skip
            axes.set_title(name, fontsize="small")
            axes.tick_params(labelsize=5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            if name == "A_t":  # drawn as a band, it has no rows
                axes.set_yticks([])
            axes.set_xlabel("tokens", fontsize="x-small")
        row[0].set_ylabel(f"{short(layer)}\nchannels", fontsize="x-small")
    return figure


def confusion(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Confusion matrix [true, predicted], shares of each row; accuracies per class beside it."""
    classes = len(names)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 2.5 + min(0.32 * classes, 12)
    figure = new(size + 1.8, size)
    left, right = figure.subplots(1, 2, width_ratios=(4, 1), sharey=True)
    drawn = left.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(drawn, ax=left, location="top", shrink=0.5, label="share of the class")
    if classes <= 20:
        for true, predicted in zip(*np.nonzero(counts), strict=True):
            dark = shares[true, predicted] > 0.5
            left.annotate(str(counts[true, predicted]), (predicted, true), ha="center",
                          va="center", fontsize=6, color="white" if dark else "black")  # fmt: skip
    if classes <= 100:
        left.set_xticks(range(classes), names, rotation=90, fontsize=6)
        left.set_yticks(range(classes), names, fontsize=6)
    left.set(xlabel="predicted class", ylabel="true class")
    right.barh(range(classes), 100 * shares.diagonal(), color="0.5", edgecolor="black")
    right.set(xlabel="accuracy (%)", xlim=(0, 100))
    return figure
