"""The figures of docs/model.md and docs/reproduce.md: ``python docs/draw.py [FOLDER]``.

Spikes, masks and membrane potentials in them are computed by the package. The curves are those of
the published logs, from ``tests/golden/lr_traces.json``.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from diagrams import CURRENT, FAINT, INK, SPIKE, hierarchy, speds, wirings
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from qkformer.layers.attention import MASK_THRESHOLD, SpikeMask, SpikeProduct
from qkformer.neurons import LIF
from qkformer.neurons.reference import step

ROOT = Path(__file__).parents[1]
STYLE = {"font.size": 9, "axes.edgecolor": INK, "text.color": INK}


def membranes(currents: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Potentials h in front of the reset, and spikes, of a LIF from v = 0."""
    v, potentials, spikes = torch.zeros(()), [], []
    for current in torch.tensor(currents, dtype=torch.float64):
        _, h = step(current, v.double(), reciprocal_tau=0.5, v_threshold=float("inf"))
        fired, v = step(current, v.double(), reciprocal_tau=0.5)
        potentials.append(h.item())
        spikes.append(bool(fired))
    return np.array(potentials), np.array(spikes)


def neuron() -> Figure:
    """A LIF under three constant currents."""
    figure, axes = plt.subplots(1, 3, figsize=(9.0, 2.0), sharey=True, layout="constrained")
    for ax, current in zip(axes, (0.9, 1.2, 2.5), strict=True):
        _trace(ax, [current] * 8, [SPIKE] * 8, [str(t) for t in range(1, 9)])
        ax.set_title(f"current {current} at every step", fontsize=9)
        ax.set_xlabel("time step")
    axes[0].set_ylabel("potential h")
    return figure


def fault() -> Figure:
    """The last neuron of SSA: T * B steps as released, T steps as it should be."""
    T = 4
    one, other = {"A": 1.9, "B": 1.2, "C": 1.7}, {"D": 0.3, "B": 1.2, "E": 0.2}  # constant currents
    figure, axes = plt.subplots(3, 1, figsize=(9.0, 5.0), sharey=True, layout="constrained")
    colors = {name: SPIKE if name == "B" else FAINT for name in "ABCDE"}
    for ax, batch in zip(axes, (one, other), strict=False):
        order = [name for _ in range(T) for name in batch]
        labels = [f"{name}, t = {i // 3 + 1}" for i, name in enumerate(order)]
        _trace(ax, [batch[name] for name in order], [colors[name] for name in order], labels)
        ax.set_title(
            f"original: one neuron, T * B = 12 steps; samples {', '.join(batch)}", **_TITLE
        )
    ax = axes[2]
    for place, (name, current) in enumerate(one.items()):
        labels = [f"{name}, t = {t}" for t in range(1, T + 1)]
        _trace(ax, [current] * T, [colors[name]] * T, labels, start=place * T)
    for edge in (3.5, 7.5):
        ax.axvline(edge, color=INK, lw=1, ls=":")
    ax.set_title(
        "fixed: T = 4 steps from v = 0 for every sample, whatever else is in the batch", **_TITLE
    )
    axes[1].set_ylabel("potential h of the same neuron")
    return figure


_TITLE = dict(fontsize=9, loc="left", fontweight="bold")


def _trace(ax: Axes, currents: list[float], colors: list[str], labels: list[str], start: int = 0):
    potentials, spikes = membranes(currents)
    xs = np.arange(len(currents)) + start
    ax.bar(xs, potentials, width=0.62, color=colors, ec=INK, lw=0.6)
    if not start:
        ax.axhline(1, color=CURRENT, lw=1, ls="--")  # the threshold
    ax.plot(xs[spikes], potentials[spikes] + 0.12, marker="v", ls="", color=INK, ms=5)
    ticks = [*ax.get_xticks(), *xs] if start else list(xs)
    names = [*(text.get_text() for text in ax.get_xticklabels()), *labels] if start else labels
    ax.set_xticks(ticks, names, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_ylim(0, 1.7)


CELL = 0.1  # inches


def _matrix(
    figure: Figure, x: float, y: float, values: torch.Tensor, title: str, numbers: bool = False
):
    """Spikes or numbers, channels down and tokens to the right; ``y`` is its middle, in inches."""
    values = values.numpy()
    rows, columns = values.shape
    width, height = figure.get_size_inches()
    place = (
        x / width,
        (y - rows * CELL / 2) / height,
        columns * CELL / width,
        rows * CELL / height,
    )
    ax = figure.add_axes(place)
    colors = "Purples" if numbers else ListedColormap(["white", SPIKE])
    ax.imshow(values, cmap=colors, vmin=0, vmax=values.max() if numbers else 1, aspect="auto")
    ax.set(xticks=np.arange(columns + 1) - 0.5, yticks=np.arange(rows + 1) - 0.5)
    ax.grid(color=FAINT, lw=0.4)
    ax.tick_params(length=0, labelbottom=False, labelleft=False)
    if numbers:
        for (row, column), value in np.ndenumerate(values.astype(int)):
            ax.text(column, row, value, ha="center", va="center", fontsize=4.5,
                    color="white" if value > 0.6 * values.max() else INK)  # fmt: skip
    figure.text((x + columns * CELL / 2) / width, (y + 0.5) / height, title, ha="center")


def attentions() -> Figure:
    """Q-K token and channel attention and SSA: one head, the first time step."""
    torch.manual_seed(3)
    d, n = 8, 16
    figure = plt.figure(figsize=(10.4, 4.4))
    columns = (0.8, 2.75, 4.7, 6.65, 8.6)
    neuron = LIF(v_threshold=MASK_THRESHOLD)
    q, k = ((torch.rand(1, 1, d, 4, 4) < p) * (torch.rand(d, 1, 1) < 0.8) for p in (0.09, 0.35))
    for y, heads, name, over in ((3.6, 1, "QKTA", "channels"), (2.15, None, "QKCA", "tokens")):
        mask = SpikeMask(heads)
        sums = mask.sums(q.float())
        shape, indent = ((1, n), 0.0) if heads else ((d, 1), 0.75)
        fired, passed = neuron(sums), mask(q.float(), k.float(), neuron)
        figure.text(0.01, y / 4.4, name, fontweight="bold", va="center")
        _matrix(figure, columns[0], y, q.view(d, n), "q")
        title = f"q summed over {over}"
        _matrix(figure, columns[1] + indent, y, sums.view(shape), title, numbers=True)
        _matrix(figure, columns[2] + indent, y, fired.view(shape), "neuron: the mask")
        _matrix(figure, columns[3], y, k.view(d, n), "k")
        _matrix(figure, columns[4], y, passed.view(d, n), "mask * k")
    q, k, v = (torch.rand(d, n) < 0.42 for _ in range(3))
    product = SpikeProduct(scale=None)(*(x.float().view(1, 1, 1, d, n) for x in (q, k, v)))
    fired = neuron(0.125 * product)
    figure.text(0.01, 0.7 / 4.4, "SSA", fontweight="bold", va="center")
    for x, values, title in zip(columns, (q, k, v), "qkv", strict=False):
        _matrix(figure, x, 0.7, values, title)
    _matrix(figure, columns[3], 0.7, product.view(d, n), "q k$^T$ v", numbers=True)
    _matrix(figure, columns[4], 0.7, fired.view(d, n), "neuron(0.125 q k$^T$ v)")
    return figure


# ------------------------------------------------------------------------------- published curves


def curves() -> Figure:
    """Test accuracy and learning rate of the published logs that have both."""
    logs = json.loads((ROOT / "tests" / "golden" / "lr_traces.json").read_text())
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.0), layout="constrained")
    runs = (
        ("imagenet_10_768", "QKFormer 10-768, ImageNet-1k (original SSA)"),
        ("cifar10-dvs", "QKFormer 2-256, CIFAR10-DVS"),
    )
    for ax, (name, title) in zip(axes, runs, strict=True):
        log = logs[name]
        ax.plot(log["test_acc1"], color=SPIKE)
        ax.set(xlabel="epoch", ylabel="test accuracy, %")
        ax.yaxis.label.set_color(SPIKE)
        best = int(np.argmax(log["test_acc1"]))
        reached = f"best {log['test_acc1'][best]:.2f} % in epoch {best}"
        ax.set_title(f"{title}\n{reached}", fontsize=9)
        right = ax.twinx()
        right.plot(log["lr"], color=CURRENT, lw=1)
        right.set_ylabel("learning rate", color=CURRENT)
        ax.spines["top"].set_visible(False)
        right.spines["top"].set_visible(False)
    return figure


FIGURES = (hierarchy, speds, attentions, neuron, fault, wirings, curves)


def draw(folder: Path) -> None:
    """All of them, as model_<name>.png."""
    for figure_of in FIGURES:
        with plt.rc_context(STYLE):
            figure = figure_of()
            file = folder / f"model_{figure_of.__name__}.png"
            figure.savefig(file, dpi=130, bbox_inches="tight", facecolor="white")
        plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
