"""Figures that compare: runs over epochs, accuracy with cost, what was measured with theory."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from qkformer.analysis.figures import LINES, MARKERS, new, short
from qkformer.analysis.tables import Rows
from qkformer.analysis.theory import binomial

PANELS = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "test_acc1": "top-1 accuracy (%)",
    "test_acc5": "top-5 accuracy (%)",
}


def curves(runs: Mapping[str, Rows]) -> Figure:
    """Losses and accuracies against epochs, several runs on one axis."""
    panels = {key: name for key, name in PANELS.items()
              if any(key in row for rows in runs.values() for row in rows)}  # fmt: skip
    figure = new(4 * min(2, len(panels)), 2.9 * ((len(panels) + 1) // 2))
    grid = figure.subplots((len(panels) + 1) // 2, min(2, len(panels)), squeeze=False).flat
    for axes, (key, name) in zip(grid, panels.items(), strict=False):
        for i, (run, rows) in enumerate(runs.items()):
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            axes.plot(*zip(*points, strict=True) if points else ([], []),
                      LINES[i % len(LINES)], color=str(0.15 * (i % 5)), label=run,
                      marker="." if len(points) < 3 else None, linewidth=1.2)  # fmt: skip
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(runs)),
                  fontsize="small")  # fmt: skip
    for axes in figure.axes[len(panels) :]:
        axes.axis("off")
    return figure


COSTS = {"energy_mJ": "energy per sample (mJ)", "params_M": "parameters (M)", "T": "time steps T"}


def scatter(rows: Rows) -> Figure:
    """Accuracy against energy, parameters and T; a marker per system, filled for our runs.

    Energies of different conventions compare nothing, so the legend has the convention of each.
    """
    systems: dict[str, list] = {}
    for row in rows:
        if "top1" in row:
            systems.setdefault(_label(row), []).append(row)
    figure = new(12.5, 4.8)
    for axes, (key, name) in zip(figure.subplots(1, len(COSTS)), COSTS.items(), strict=True):
        for i, (label, points) in enumerate(systems.items()):
            known = [row for row in points if key in row]
            ours = "run" in points[0]
            axes.plot([row[key] for row in known], [row["top1"] for row in known],
                      MARKERS[i % len(MARKERS)], color=str(0.12 * (i % 6)), label=label,
                      markerfacecolor=None if ours else "none", linestyle="none")  # fmt: skip
        axes.set(xlabel=name, ylabel="top-1 accuracy (%)", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="x", labelsize="small")
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small",
                  title="system (energy convention)")  # fmt: skip
    return figure


def _label(row: dict[str, Any]) -> str:
    """ "QKFormer 10-384, leak removed" -> "QKFormer, leak removed (qkformer)" """
    first, comma, more = row["system"].partition(", ")
    family = first if "run" in row or " " not in first else first.rpartition(" ")[0]
    if first.endswith("(ANN)"):
        family = first
    family = re.sub(r"-\d+$", "", family)  # depth of a ResNet
    convention = row.get("convention")
    return family + comma + more + (f" ({convention})" if convention else "")


def theory(statistics: Rows, *, tokens: int = 196, head_dim: int = 64) -> Figure:
    """E and Var of SSA over f_Q and f_K (f_V fixed), of QKTA over f_Q; measured ones beside.

    Left: for ``tokens`` and ``head_dim``, the rates that were measured marked. f_V is the mean of
    the measured ones, 1 without any. Right: what was measured against theory at its own sizes; on
    the line if spikes were independent.

    Args:
        statistics: of :func:`qkformer.analysis.theory.statistics`.
    """
    figure = new(11, 6)
    grid = figure.subplots(2, 3)
    f = np.linspace(0, 1, 101)
    measured = [row["f_v"] for row in statistics if "f_v" in row]
    f_v = sum(measured) / len(measured) if measured else 1.0
    terms = tokens * head_dim
    surfaces = binomial(terms, np.outer(f, f) * f_v)
    curves = binomial(head_dim, f)
    names = ("E", "Var")
    for axes, name, surface in zip(grid[0], names, surfaces, strict=False):
        drawn = axes.contourf(f, f, surface.T, 12, cmap="Greys")
        figure.colorbar(drawn, ax=axes)
        for i, row in enumerate(statistics):
            if "f_v" in row:
                axes.plot(row["f_q"], row["f_k"], MARKERS[i % len(MARKERS)], color="white",
                          markeredgecolor="black")  # fmt: skip
        axes.set(xlabel="f_Q", ylabel="f_K", title=f"{name} of SSA: N {tokens}, d {head_dim}, "
                 f"f_V {f_v:.2g}")  # fmt: skip
    for axes, name, curve in zip(grid[1], names, curves, strict=False):
        axes.plot(f, curve, "k-", linewidth=1)
        for i, row in enumerate(statistics):
            if "f_v" not in row:
                at = getattr(binomial(head_dim, row["f_q"]), "mean" if name == "E" else "variance")
                axes.plot(row["f_q"], at, MARKERS[i % len(MARKERS)], color="0.5",
                          markeredgecolor="black")  # fmt: skip
        axes.set(xlabel="f_Q", title=f"{name} of QKTA: d {head_dim}")
        axes.grid(alpha=0.3)
    for axes, name, measured in zip(grid[:, 2], names, ("mean", "variance"), strict=True):
        _against(axes, statistics, name, measured)
    return figure


def _against(axes: Axes, statistics: Rows, name: str, measured: str) -> None:
    """Measured values against theory, both on a logarithmic scale."""
    for i, row in enumerate(statistics):
        axes.plot(row[name], row[measured], MARKERS[i % len(MARKERS)], markeredgecolor="black",
                  color="white" if "f_v" in row else "0.5", label=short(row["layer"]))  # fmt: skip
    values = [row[key] for row in statistics for key in (name, measured) if row[key] > 0]
    if values:
        ends = min(values) / 2, max(values) * 2
        axes.plot(ends, ends, "k--", linewidth=0.8, label="independent spikes")
        axes.set(xscale="log", yscale="log")
        axes.legend(fontsize="x-small")
    axes.set(xlabel=f"{name} for independent spikes", ylabel=f"measured {measured}")
    axes.grid(alpha=0.3)
