"""Published results, as a table with sources: what a measurement is put beside."""

from pathlib import Path
from typing import Any

from qkformer.analysis.measurement import Measurement
from qkformer.analysis.tables import read_csv

FILE = Path(__file__).with_name("published.csv")


def published() -> list[dict[str, Any]]:
    """Rows with system, model (ours), data, input (px), T, params_M, top1 (%), energy_mJ, ssa,
    convention, source; what is not known is not there.

    Energies of different conventions compare nothing: see qkformer.analysis.conventions.
    """
    return read_csv(FILE)


def beside(measured: Measurement) -> list[dict[str, Any]]:
    """Rows of the model, input size and T that were measured, with an energy."""
    size, T = measured.input_shape[-1], measured.T
    return [
        row
        for row in published()
        if (row.get("model"), row["input"], row.get("T")) == (measured.model, size, T)
        and "energy_mJ" in row
    ]
