"""A pass over data as its user sees it: energy, tables, JSON."""

from dataclasses import dataclass, field
from typing import Any

from qkformer.analysis import conventions, movement, tables
from qkformer.analysis.attention import MaskAttention, ProductAttention
from qkformer.analysis.records import Layer, Neuron

UNLISTED = "multiply-accumulates of no listed layer"  # products that are no SpikeProduct's
SILENT = 1e-3  # spikes per neuron and step below which a layer of neurons hardly fires


@dataclass(frozen=True)
class Measurement:
    """Everything that :func:`qkformer.analysis.measure` counts.

    Attributes:
        model: registered name of the model, or its class.
        T: time steps.
        samples: B, over all batches and processes.
        input_shape: of one sample.
        layers, attention, neurons: in order of execution.
        executed_macs: of one sample and all its steps, as torch.utils.flop_counter has them.
        left_out: what no convention counts, or not all, per sample.
        remarks: what a reader of the numbers must know.
    """

    model: str
    T: int
    samples: int
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    attention: tuple[MaskAttention | ProductAttention, ...]
    neurons: tuple[Neuron, ...]
    executed_macs: int
    left_out: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Of one step and sample, in layers and (in the cheaper order) products of SSA."""
        products = [a.executed_macs for a in self.attention if isinstance(a, ProductAttention)]
        others = self.left_out.get(UNLISTED, 0) // self.T
        return sum(layer.macs for layer in self.layers) + sum(products) + others

    def energy(self, **constants: Any) -> dict[str, dict[str, Any]]:
        """mJ per sample, and what it is made of, by the name of the convention.

        Args:
            constants: those of :func:`qkformer.analysis.conventions.totals`.
        """
        return conventions.totals(self, **constants) | {
            "movement_no_reuse": movement.no_reuse(self),
            "movement_ideal": movement.ideal(self),
        }

    def ann(self, mac_pj: float = conventions.MAC_PJ) -> dict[str, float]:
        """The same network run once with MACs everywhere; additions that an SNN makes per MAC.

        Of a network without neurons, itself an ANN, that is all it executes, attention included.
        """
        macs = self.macs if self.neurons else self.executed_macs
        return {
            "macs": macs,
            "mJ": conventions.MILLI * mac_pj * macs,
            "additions_per_mac": self.energy()["qkformer"]["acs"] / macs,
        }

    def breakdown(self, convention: str = "qkformer") -> dict[str, float]:
        """mJ by part of the network, as the paper prints it."""
        return conventions.breakdown(self, convention)

    def table(self) -> str:
        """Layers, totals, what is left out and what must be known of them."""
        return tables.report(self)

    def to_json(self) -> dict[str, Any]:
        """In the schema of tests/golden/energy."""
        return {
            "model": self.model,
            "T": self.T,
            "B": self.samples,
            "input_shape": self.input_shape,
            "energy": self.energy(),
            "ann": self.ann(),
            "breakdown_qkformer_mJ": self.breakdown(),
            "layers": [layer.to_json() | {"mJ": conventions.of(layer)} for layer in self.layers],
            "attention": [each.to_json() | {"mJ": conventions.of(each)} for each in self.attention],
            "neurons": [neuron.to_json() for neuron in self.neurons],
            "left_out": self.left_out,
            "remarks": self.remarks,
        }
