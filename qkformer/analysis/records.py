"""What one pass over data counts of a layer and of a neuron: integers, and what follows.

Field names are those of the files in tests/golden/energy.
"""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["real", "binary", "integer", "head"]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer.

    Attributes:
        layer, published: module path here, and in the published state dict where there is one.
        kind: "real": a value of its input was no number of spikes; "binary": all were 0 or 1;
            "integer": 0, 1, 2, ...; "head": the classifier, whatever it gets. Over all batches.
        stem: it runs in front of the first neuron.
        macs: multiply-accumulates of one step and sample, bias left out.
        steps: time steps that it runs for; T where it runs once for a static image.
        outputs, weights: elements of one step's output, and of the weight.
        bias: whether there is one.
        input_elements: of one step and sample.
        samples: B.
        inputs, nonzeros, additions, additions_nonzero: of every step, over all samples: sum of the
            input, its elements that are not 0, and the additions of weights that either makes,
            borders and strides exact. None for "real" and "head".
        input_max: largest input.
    """

    layer: str
    published: str | None
    kind: Kind
    stem: bool
    macs: int
    steps: int
    outputs: int
    weights: int
    bias: bool
    input_elements: int
    samples: int
    inputs: tuple[int, ...] | None = None
    nonzeros: tuple[int, ...] | None = None
    input_max: int | None = None
    additions: tuple[int, ...] | None = None
    additions_nonzero: tuple[int, ...] | None = None

    @property
    def input_numel(self) -> int:
        """Elements of its input, over all samples and steps."""
        return self.input_elements * self.steps * self.samples

    @property
    def input_sum(self) -> int:
        return sum(self.inputs)

    @property
    def input_nonzero(self) -> int:
        return sum(self.nonzeros)

    @property
    def adds(self) -> int:
        return sum(self.additions)

    @property
    def adds_nonzero(self) -> int:
        return sum(self.additions_nonzero)

    @property
    def mean(self) -> float:
        """Spikes per input, each of several counted; the "firing rate" of QKFormer's formula."""
        return self.input_sum / self.input_numel

    @property
    def nonzero(self) -> float:
        return self.input_nonzero / self.input_numel

    @property
    def sops(self) -> float:
        """Synaptic operations per sample, mean x T x MACs."""
        return self.mean * self.steps * self.macs

    @property
    def sops_nonzero(self) -> float:
        return self.nonzero * self.steps * self.macs

    def to_json(self) -> dict[str, Any]:
        names = ["layer", "published", "kind", "macs", "steps", "outputs", "weights", "bias"]
        names += ["input_numel"]
        if self.inputs is not None:
            names += ["input_sum", "input_nonzero", "input_max", "adds", "adds_nonzero"]
            names += ["mean", "nonzero", "sops", "sops_nonzero"]
            names += ["inputs", "nonzeros", "additions", "additions_nonzero"]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Neuron:
    """A layer of neurons.

    Attributes:
        neuron: module path.
        steps: spikes of every time step, over all samples.
        numel: outputs over all samples and steps.
        nonzeros: outputs of every time step that are not 0; ``steps`` again where one spike is all
            that a neuron can give.
    """

    neuron: str
    steps: tuple[int, ...]
    nonzeros: tuple[int, ...]
    numel: int

    @property
    def spikes(self) -> int:
        return sum(self.steps)

    @property
    def rate(self) -> float:
        return self.spikes / self.numel

    @property
    def rates(self) -> tuple[float, ...]:
        """Of every time step."""
        return tuple(spikes * len(self.steps) / self.numel for spikes in self.steps)

    def to_json(self) -> dict[str, Any]:
        return {"neuron": self.neuron, "spikes": self.spikes, "numel": self.numel,
                "rate": self.rate, "rates": self.rates}  # fmt: skip
