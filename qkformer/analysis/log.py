"""What training writes down of its last model: ``log.energy``."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qkformer.analysis import conventions, tables
from qkformer.analysis.measure import World, measure
from qkformer.analysis.measurement import Measurement
from qkformer.files import write_text


def write_energy(measured: Measurement, folder: Path, **facts: Any) -> None:
    """energy.json; energy.csv, a row per layer; energy_parts.csv, a row per convention.

    Args:
        facts: what energy.json says besides.
    """
    write_text(folder / "energy.json", json.dumps(measured.to_json() | facts, indent=1) + "\n")
    write_text(folder / "energy.csv", tables.as_csv(tables.layers(measured)))
    parts = [{"convention": name} | measured.breakdown(name) for name in conventions.CONVENTIONS]
    write_text(folder / "energy_parts.csv", tables.as_csv(parts))


def cost(known: Mapping[str, Any], convention: str) -> tuple[float, str]:
    """mJ per sample that energy.json says, and the convention; of an ANN there is but one."""
    if known["neurons"]:
        return known["energy"][convention]["mJ"], convention
    return known["ann"]["mJ"], "ann"


def log_energy(
    model: nn.Module,
    batches: Iterable[Tensor],
    folder: Path,
    *,
    world: World | None = None,
    is_main: bool = True,
    **facts: Any,
) -> dict[str, float]:
    """Measure, write energy.json and its tables in the main process, and say what to plot.

    Args:
        batches: inputs of the model, of this process.
        facts: what energy.json says besides; :func:`qkformer.analysis.commands.compare` reads
            ``data`` (name of the data set), ``ssa`` and ``parameters`` (a number).

    Returns:
        Scalars for TensorBoard by name: mJ of every convention, rate of every layer of neurons.
    """
    measured = measure(model, batches, world=world)
    if is_main:
        write_energy(measured, folder, **facts)
    energies = {f"energy_mJ/{name}": each["mJ"] for name, each in measured.energy().items()}
    return energies | {f"rates/{neuron.neuron}": neuron.rate for neuron in measured.neurons}
