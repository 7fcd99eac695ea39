"""The figure of benchmarks.scaling; needs matplotlib (``pip install qkformer[benchmark]``)."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NAMES = {"N": "tokens N", "T": "time steps T", "D": "channels D", "B": "batch B"}
QUANTITIES = {
    "time (ms)": lambda point: point["seconds"]["median"] * 1e3,
    "peak memory (MiB)": lambda point: point.get("peak_mib"),
}


def plot_scaling(points: Sequence[dict], path: Path) -> None:
    """Time and memory (rows) against N, T, D, B (columns), both axes logarithmic; a PNG.

    Args:
        points: As benchmarks.scaling saves them.
        path: Of the file.
    """
    axes_names = [axis for axis in NAMES if any(point["axis"] == axis for point in points)]
    figure = Figure(figsize=(3.2 * len(axes_names), 6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(QUANTITIES), len(axes_names), squeeze=False)
    kinds = list(dict.fromkeys(point["kind"] for point in points))
    for row, (quantity, value_of) in zip(grid, QUANTITIES.items(), strict=True):
        for axes, axis in zip(row, axes_names, strict=True):
            for kind in kinds:
                measured = [
                    (point[axis], value_of(point))
                    for point in points
                    if (point["axis"], point["kind"]) == (axis, kind) and "seconds" in point
                ]
                measured = [(size, value) for size, value in measured if value]
                axes.loglog(
                    *zip(*measured, strict=True) if measured else ([], []), "o-", label=kind
                )
            sizes = sorted({point[axis] for point in points if point["axis"] == axis})
            axes.set_xticks(sizes, map(str, sizes), fontsize="small")
            axes.minorticks_off()
            axes.set_xlabel(NAMES[axis])
            axes.grid(alpha=0.3)
        row[0].set_ylabel(quantity)
    lines, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=len(kinds), fontsize="small")
    figure.savefig(path, dpi=100)
