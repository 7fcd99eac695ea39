"""Pictures of a study."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from qkformer.analysis.figures import new
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
    """Accuracy against the batch size in testing: a panel per variant, a line per attention.

    Args:
        rows: of :func:`qkformer.studies.table.retest_rows`.
    """
    titles = list(dict.fromkeys(row["title"] for row in rows))
    sizes = sorted({row["batch size"] for row in rows})
    figure = new(1.2 + 2.6 * len(titles), 3.4)
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axes, title in zip(panels, titles, strict=True):
        for ssa, line, marker, aside in (("fixed", "-", "o", 0.97), ("original", "--", "s", 1.03)):
            found = [row for row in rows if (row["title"], row["tested with"]) == (title, ssa)]
            axes.errorbar([row["batch size"] * aside for row in found],
                          [row["top-1 (%)"] for row in found],
                          yerr=[row["top-1 (%) sd"] or 0 for row in found], capsize=3,
                          linestyle=line, marker=marker, markersize=5, linewidth=1.2,
                          color="black" if ssa == "fixed" else "0.5", label=ssa)  # fmt: skip
        axes.set(title=f"trained: {title}", xlabel="batch size in testing", xscale="log")
        axes.title.set_fontsize("small")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("top-1 accuracy (%)")
    panels[0].legend(title="tested with", fontsize="small", title_fontsize="small")
    return figure
