"""Energy of moving data: the two ends between which any hardware lies.

Operations are the cheap part. No claim about a chip is made; what means something is the ratio to
another network that is counted in the same way. Memory after Horowitz (ISSCC 2014), as Lemaire et
al. (arXiv 2210.13107) interpolate it; 3.12 pJ a bit of DRAM after Shen et al. (arXiv 2505.11151).
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from qkformer.analysis.attention import MaskAttention
from qkformer.analysis.conventions import MILLI
from qkformer.analysis.records import Layer, Neuron

if TYPE_CHECKING:
    from qkformer.analysis.measurement import Measurement

ACCESS_PJ = ((0, 0.0), (8 * 1024, 10.0), (32 * 1024, 20.0), (1024**2, 100.0))  # bytes, pJ
QUEUE = 4000  # bytes, of a queue of spikes: 1000 words
DRAM_BIT_PJ = 3.12
WORD = 4  # bytes
REAL_BITS, INTEGER_BITS = 8, 8


def access(size: float) -> float:
    """pJ to read or write 32 bits of a memory of so many bytes."""
    for (low, cost_low), (high, cost_high) in pairwise(ACCESS_PJ):
        if size <= high:
            return cost_low + (cost_high - cost_low) * (size - low) / (high - low)
    return ACCESS_PJ[-1][1]


Accesses = list[tuple[str, float, float]]  # what, how many, bytes of the memory


def no_reuse(measured: "Measurement") -> dict[str, Any]:
    """Every operand of every addition comes from memory: accesses and mJ, per sample."""
    accesses: Accesses = []
    for layer in measured.layers:
        accesses += _of_layer(layer)
    for item in measured.attention:
        accesses += _of_attention(item)
    for neuron in measured.neurons:
        accesses += _of_neuron(neuron, measured.samples)
    counts = dict.fromkeys(("weights", "accumulators", "state", "spikes"), 0.0)
    costs = dict(counts)
    for what, count, size in accesses:
        counts[what] += count
        costs[what] += count * access(size) * MILLI
    return {"accesses": counts, "mJ_parts": costs, "mJ": sum(costs.values())}


def _of_layer(layer: Layer) -> Accesses:
    if layer.kind in ("binary", "integer"):
        operations = layer.adds / layer.samples
        inputs = ("spikes", layer.input_sum / layer.samples, QUEUE)
    else:
        operations = layer.macs * (1 if layer.stem else layer.steps)
        inputs = ("spikes", operations, WORD * layer.input_elements)
    found = [
        ("weights", operations, WORD * layer.weights),
        ("accumulators", 2 * operations, WORD * layer.outputs),
    ]
    return found if layer.kind == "head" else [*found, inputs]


def _of_attention(item: Any) -> Accesses:
    q, k = item.q_sum / item.samples, item.k_sum / item.samples
    if isinstance(item, MaskAttention):
        mask = item.mask_numel / item.samples / item.steps
        return [("accumulators", 2 * q, WORD * mask), ("spikes", q + k, QUEUE)]
    first, second = item.kv_coincidences / item.samples, item.value_dim * q
    inner = WORD * item.dim * item.value_dim  # k^T v of all heads
    return [
        ("accumulators", 2 * first + second, inner),
        ("accumulators", 2 * second, WORD * item.heads * item.value_dim * item.tokens),
        ("spikes", q + k + item.v_sum / item.samples, QUEUE),
    ]


def _of_neuron(neuron: Neuron, samples: int) -> Accesses:
    outputs = neuron.numel / samples
    return [
        ("state", 2 * outputs, WORD * outputs / len(neuron.steps)),
        ("spikes", neuron.spikes / samples, QUEUE),
    ]


def ideal(measured: "Measurement") -> dict[str, Any]:
    """Every datum crosses once: bits of weights, read and written, and mJ, per sample."""
    samples = measured.samples
    weights = 32 * sum(layer.weights for layer in measured.layers)
    read = sum(_bits_read(layer) for layer in measured.layers)
    read += sum(item.operands for item in measured.attention) // samples
    written = sum(neuron.numel for neuron in measured.neurons) // samples
    bits = weights + read + written
    return {
        "weight_bits": weights,
        "read_bits": read,
        "written_bits": written,
        "mJ": DRAM_BIT_PJ * bits * MILLI,
    }


def _bits_read(layer: Layer) -> int:
    if layer.kind == "head":
        return 0
    if layer.kind == "real":
        return REAL_BITS * layer.input_elements * (1 if layer.stem else layer.steps)
    bits = 1 if layer.kind == "binary" else INTEGER_BITS
    return bits * layer.input_elements * layer.steps
