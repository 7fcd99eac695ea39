"""Figures that compare runs: curves over epochs, accuracy against cost."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from qkformer.analysis.figures import LINES, MARKERS, new
from qkformer.analysis.tables import Rows

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
    """Accuracy against energy, parameters and T; a marker per family, filled for ours.

    Energies of different conventions compare nothing, so the convention is written at each.
    """
    families = list(dict.fromkeys(_family(row["system"]) for row in rows))
    figure = new(12.5, 4.6)
    for axes, (key, name) in zip(figure.subplots(1, len(COSTS)), COSTS.items(), strict=True):
        for i, family in enumerate(families):
            known = (row for row in rows if key in row and "top1" in row)
            points = [row for row in known if _family(row["system"]) == family]
            for ours in (False, True):
                these = [row for row in points if bool(row.get("run")) == ours]
                axes.plot([row[key] for row in these], [row["top1"] for row in these],
                          MARKERS[i % len(MARKERS)], color=str(0.12 * (i % 6)), markersize=6,
                          markerfacecolor=None if ours else "none", linestyle="none",
                          label="_" if ours and len(these) < len(points) else family)  # fmt: skip
            for row in points if key == "energy_mJ" else ():
                axes.annotate(row.get("convention", ""), (row[key], row["top1"]), fontsize=4,
                              xytext=(4, 2), textcoords="offset points")  # fmt: skip
        axes.set(xlabel=name, ylabel="top-1 accuracy (%)")
        if any(key in row for row in rows):
            axes.set_xscale("log")
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize="small")
    return figure


def _family(system: str) -> str:
    """ "QKFormer 10-384, leak removed" -> "QKFormer" """
    return system.split(" ")[0].split(",")[0].rstrip("0123456789").rstrip("-")
