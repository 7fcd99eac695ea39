"""Boxes and arrows of docs/model.md; ``draw.py`` writes them."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#333333", "#bbbbbb"
SPIKE, INTEGER, CURRENT = "#2166ac", "#7b3294", "#d6604d"  # 0 or 1; 0, 1, 2, ...; real numbers
KINDS = {"conv": "#eeeeee", "neuron": "#d1e5f0", "mixer": "#fde0c5", "plain": "#ffffff"}


class Diagram:
    """Boxes and arrows; one unit is the height of two lines of text."""

    def __init__(self, ax: Axes, width: float, height: float):
        self.ax = ax
        ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        ax.axis("off")

    def box(
        self, x: float, y: float, text: str, kind: str, width: float = 1.9, height: float = 0.8
    ):
        corner = (x - width / 2, y - height / 2)
        patch = plt.Rectangle(corner, width, height, fc=KINDS[kind], ec=INK, lw=0.8, zorder=2)
        self.ax.add_patch(patch)
        self.ax.text(x, y, text, ha="center", va="center", zorder=3, linespacing=1.15)

    def arrow(self, *points: tuple[float, float], color: str = INK):
        """A line through the points, with a head at its end."""
        xs, ys = zip(*points, strict=True)
        self.ax.plot(xs[:-1], ys[:-1], color=color, lw=1.4, zorder=1, solid_joinstyle="miter")
        style = dict(arrowstyle="-|>", color=color, lw=1.4, shrinkA=0, shrinkB=0, mutation_scale=11)
        self.ax.annotate("", points[-1], points[-2], arrowprops=style, zorder=1)

    def plus(self, x: float, y: float):
        self.ax.add_patch(plt.Circle((x, y), 0.24, fc="white", ec=INK, lw=1.0, zorder=2))
        self.ax.plot([x - 0.13, x + 0.13], [y, y], color=INK, lw=1.2, zorder=3)
        self.ax.plot([x, x], [y - 0.13, y + 0.13], color=INK, lw=1.2, zorder=3)

    def say(self, x: float, y: float, text: str, color: str = INK, **style):
        style = dict(ha="center", va="center") | style
        self.ax.text(x, y, text, color=color, **style)


def hierarchy() -> Figure:
    """The way of an image through QKFormer 10-384."""
    figure, ax = plt.subplots(figsize=(9.6, 2.2))
    d = Diagram(ax, 23.4, 5.0)
    d.say(1.25, 2.6, "image\n[B, 3, 224, 224]\nfed T times", fontsize=8)
    stages = ((96, 56, "QKTA", 1), (192, 28, "QKTA", 2), (384, 14, "SSA", 7))
    x = 2.9
    for number, (channels, size, mixer, blocks) in enumerate(stages, start=1):
        d.arrow((x, 2.6), (x + 0.85, 2.6), color=INK if number == 1 else INTEGER)
        frame = plt.Rectangle((x + 0.45, 0.55), 5.3, 3.8, fc="none", ec=FAINT, lw=1, ls="--")
        ax.add_patch(frame)
        d.say(x + 3.1, 4.65, f"stage {number}", fontweight="bold")
        d.box(x + 1.7, 2.6, "SPEDS", "conv", 1.7, 1.0)
        d.arrow((x + 2.55, 2.6), (x + 3.15, 2.6), color=INTEGER)
        d.box(x + 4.3, 2.6, f"{mixer}\n+ MLP", "mixer", 2.3, 1.5)
        d.say(x + 4.25, 3.75, f"{blocks} block" + "s" * (blocks > 1))
        d.say(
            x + 3.1, 1.05, f"C = {channels}, {size} x {size} = {size * size} tokens", fontsize=7.5
        )
        x += 5.85
    d.arrow((x - 0.35, 2.6), (x + 0.5, 2.6), color=INTEGER)
    d.say(x + 1.7, 2.6, "mean over\nH, W and T,\nlinear head", fontsize=8.5)
    return figure


def speds() -> Figure:
    """SPEDS: the stem on ImageNet, and what is between stages."""
    figure, axes = plt.subplots(2, 1, figsize=(9.0, 4.3))
    stem = (
        "conv 3x3\nBN, pool",
        "neuron",
        "conv 3x3\nBN, pool",
        "neuron",
        "conv 3x3\nBN",
        "neuron",
    )
    titles = "the stem: 3 to C channels, H to H / 4", "between stages: C / 2 to C, H to H / 2"
    for ax, title, chain, leaves in zip(axes, titles, (stem, stem[2:]), (2, 0), strict=True):
        enters = INK if leaves else INTEGER
        d = Diagram(ax, 20.6, 4.3)
        d.say(0.2, 4.0, title, ha="left", fontweight="bold")
        x, y = 1.4, 2.7
        d.say(0.55, y, "image" if leaves else "sums of\nspikes", enters, fontsize=8.5)
        for i, text in enumerate(chain):
            d.arrow((x, y), (x + 0.65, y), color=CURRENT if i % 2 else SPIKE if i else enters)
            if i == leaves:
                branch = x + 0.15
            kind = "neuron" if text == "neuron" else "conv"
            d.box(x + 1.6, y, text, kind, 1.9, 1.1 if kind == "conv" else 0.8)
            x += 2.55
        d.arrow((x, y), (x + 0.75, y), color=SPIKE)
        d.plus(x + 1.0, y)
        color = SPIKE if leaves else INTEGER
        d.arrow((branch, y), (branch, 0.9), (branch + 1.8, 0.9), color=color)
        d.box(branch + 2.95, 0.9, "conv 1x1\nstride 2, BN", "conv", 2.3, 1.1)
        d.arrow((branch + 4.1, 0.9), (branch + 4.8, 0.9), color=CURRENT)
        d.box(branch + 5.75, 0.9, "neuron", "neuron", 1.9, 0.8)
        d.arrow((branch + 6.7, 0.9), (x + 1.0, 0.9), (x + 1.0, y - 0.26), color=SPIKE)
        d.say((branch + 6.7 + x + 1.0) / 2 + 0.2, 0.55, "the deformed shortcut", fontsize=8)
        d.arrow((x + 1.25, y), (x + 1.95, y), color=INTEGER)
        d.say(x + 2.6, y, "0, 1, 2", color=INTEGER)
    return figure


def wirings() -> Figure:
    """Where a residual block has its neurons, and what its shortcut carries."""
    figure, axes = plt.subplots(1, 3, figsize=(9.0, 4.5))
    conv, neuron = ("conv, BN", "conv"), ("neuron", "neuron")
    panels = (
        ("aba", "activation before addition", (conv, neuron, conv, neuron), None, INTEGER,
         "x + branch(x)", "sums of spikes: 0, 1, 2, ..."),
        ("pa", "pre-activation", (conv, neuron, conv), neuron, SPIKE,
         "neuron(x + branch(x))", "spikes: 0, 1"),
        ("ms", "membrane shortcut", (neuron, conv, neuron, conv), None, CURRENT,
         "x + branch(neuron(x))", "currents: real numbers"),
    )  # fmt: skip
    for ax, (name, title, chain, behind, color, formula, carries) in zip(axes, panels, strict=True):
        d = Diagram(ax, 7.0, 10.4)
        d.say(3.2, 10.0, f"{name}: {title}", fontweight="bold")
        d.say(3.2, 9.35, formula, family="monospace", fontsize=8.5)
        y = 8.8
        d.arrow((3.0, y), (3.0, y - 0.95), color=color)
        d.arrow((3.0, y - 0.45), (5.6, y - 0.45), (5.6, 2.35), (3.26, 2.35), color=color)
        colors = {"conv": CURRENT, "neuron": SPIKE}
        y -= 1.3
        for i, (text, kind) in enumerate(chain):
            d.box(3.0, y, text, kind, 2.2, 0.75)
            end = 2.6 if i == len(chain) - 1 else y - 0.9
            d.arrow((3.0, y - 0.38), (3.0, end), color=colors[kind])
            y -= 1.28
        d.plus(3.0, 2.35)
        if behind:
            d.arrow((3.0, 2.1), (3.0, 1.75), color=CURRENT)
            d.box(3.0, 1.38, "neuron", "neuron", 2.2, 0.75)
        d.arrow((3.0, 1.0 if behind else 2.1), (3.0, 0.45), color=color)
        d.say(3.2, 0.1, carries, color=color)
    return figure
