"""Pictures of a study."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from qkformer.analysis.figures import LINES, MARKERS, new
from qkformer.analysis.tables import Rows


def study(
    rows: Rows,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    published: str | None,
) -> Figure:
    """Quantities and what is published: a line per variant with mean, sd, and every run's dot.

    Args:
        rows: of :func:`qkformer.studies.table.rows`.
        values: By quantity, a panel each, and by the variant's name: of every run.
        published: Of what the published accuracies are; None for no such panel.
    """
    done = [row for row in rows if row["runs"]]
    figure = new(11 if published else 8.5, 1.2 + 0.26 * len(done))
    panels = figure.subplots(1, len(values) + bool(published), sharey=True)
    for axes, (name, of) in zip(panels, values.items(), strict=False):
        for at, row in enumerate(done):
            dots = of[row["variant"]]
            axes.plot(dots, [at] * len(dots), ".", color="0.6")
            axes.errorbar(row[name], at, xerr=row[f"{name} sd"], fmt="o", color="black",
                          markersize=4, capsize=3)  # fmt: skip
        axes.set_xlabel(name)
    if published:
        known = [(row["published (%)"], at) for at, row in enumerate(done) if row["published (%)"]]
        panels[-1].plot(*zip(*known, strict=True), "D", color="black", markerfacecolor="none")
        panels[-1].set_xlabel(f"published: {published} (%)")
    panels[0].set_yticks(range(len(done)), [row["title"] for row in done])
    panels[0].invert_yaxis()
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure


def retests(rows: Rows) -> Figure:
    """Accuracy against the batch size in testing, a line per variant and attention.

    Args:
        rows: of :func:`qkformer.studies.table.retest_rows`.
    """
    figure = new(7.5, 4.2)
    axes = figure.subplots()
    lines: dict[tuple[str, str], list] = {}
    for row in rows:
        lines.setdefault((row["title"], row["tested with"]), []).append(row)
    titles = list(dict.fromkeys(title for title, _ in lines))
    for (title, ssa), line in lines.items():
        of = titles.index(title)
        axes.errorbar([row["batch size"] for row in line], [row["top-1 (%)"] for row in line],
                      yerr=[row["top-1 (%) sd"] or 0 for row in line], capsize=3, linewidth=1.2,
                      linestyle=LINES[("fixed", "original").index(ssa)], color=str(0.2 * (of % 4)),
                      marker=MARKERS[of % len(MARKERS)], markersize=5,
                      label=f"{title}, tested {ssa}")  # fmt: skip
    axes.set(xlabel="batch size in testing", ylabel="top-1 accuracy (%)", xscale="log")
    sizes = sorted({row["batch size"] for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
