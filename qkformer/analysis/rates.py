"""Firing rates as the paper's table has them, and by time step."""

from collections import defaultdict
from typing import Any

from qkformer.analysis.attention import MaskAttention, ProductAttention
from qkformer.analysis.measurement import Measurement

COLUMNS = ("Q", "K", "V", "A_t", "X'", "X''", "MLP1", "MLP2")


def table(measured: Measurement) -> list[dict[str, Any]]:
    """A row per block with an attention, then one per stage, the mean of its blocks.

    A_t is the mask, X' the mask times K, X'' what leaves the mixer, MLP1 and MLP2 what leaves the
    MLP's two layers. Where there is no such neuron, as behind a membrane shortcut, there is no
    value.
    """
    rates = {neuron.neuron: neuron.rate for neuron in measured.neurons}
    rows, stages = [], defaultdict(list)
    for each in measured.attention:
        block, _, _ = each.layer.partition(".mixer")
        row = {"Q": each.q_sum / each.numel, "K": each.k_sum / each.numel}
        if isinstance(each, ProductAttention):
            row["V"] = each.rates[2]
        if isinstance(each, MaskAttention):
            row |= {"A_t": each.mask_sum / each.mask_numel, "X'": each.masked_sum / each.numel}
        paths = {
            "X''": f"{each.layer}.proj.neuron",
            "MLP1": f"{block}.mlp.branch.fc1.neuron",
            "MLP2": f"{block}.mlp.branch.fc2.neuron",
        }
        row |= {column: rates[path] for column, path in paths.items() if path in rates}
        ordered = {column: row[column] for column in COLUMNS if column in row}
        rows.append({"block": block, "attention": each.kind, **ordered})
        stages[block.partition(".blocks")[0], each.kind].append(row)
    for (stage, kind), blocks in stages.items():
        columns = [column for column in COLUMNS if all(column in row for row in blocks)]
        means = {column: sum(row[column] for row in blocks) / len(blocks) for column in columns}
        rows.append({"block": f"{stage}, mean of {len(blocks)}", "attention": kind, **means})
    return rows


def by_step(measured: Measurement) -> list[dict[str, Any]]:
    """A row per layer of neurons and time step: spikes and active neurons, as shares."""
    rows = []
    for neuron in measured.neurons:
        per_step = neuron.numel / len(neuron.steps)
        for t, (spikes, active) in enumerate(zip(neuron.steps, neuron.nonzeros, strict=True)):
            rows.append({"neuron": neuron.neuron, "t": t, "rate": spikes / per_step,
                         "nonzero": active / per_step})  # fmt: skip
    return rows
