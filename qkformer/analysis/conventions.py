"""Energy of operations, in every convention of the literature that is written down.

All share E = 4.6 pJ x MACs + 0.9 pJ x additions, per sample over all T steps, BatchNorm folded.
They differ in what is a MAC, what an addition, and how often; so a number means something only
beside the name of its convention:

qkformer: as QKFormer's paper (arXiv 2403.16552), as far as its numbers say: the first convolution
    of a static image once, by MACs; everything behind it additions, mean input x T x MACs, where
    an input of 2 counts twice; the attentions' spikes; no head.
nonzero: likewise, but by the share of inputs that are not 0 (Spike-driven Transformer V1).
spikingformer: Spikingformer's published logs (arXiv 2304.11954): the first convolution T times, and
    inputs above 1 by MACs; biases and head counted; QKTA not.
events: the additions that happen, borders and strides exact, and the coincidences in k^T v.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from qkformer.analysis.attention import Attention, MaskAttention
from qkformer.analysis.records import Layer

if TYPE_CHECKING:
    from qkformer.analysis.measurement import Measurement

# Horowitz, "Computing's energy problem", ISSCC 2014: 45 nm, 32-bit floats, addition 0.9 pJ,
# multiplication 3.7 pJ. Its others: float16 0.4 and 1.1, int32 0.1 and 3.1, int8 0.03 and 0.2.
MAC_PJ, ADDITION_PJ = 4.6, 0.9
MILLI = 1e-9  # pJ -> mJ


class Operations(NamedTuple):
    """Per sample, over all steps."""

    macs: float = 0
    acs: float = 0

    def millijoule(self, mac_pj: float = MAC_PJ, addition_pj: float = ADDITION_PJ) -> float:
        return (mac_pj * self.macs + addition_pj * self.acs) * MILLI


FirstConv = Literal["once", "per_step"]


def _real(layer: Layer, first_conv: FirstConv) -> Operations:
    once = layer.stem and first_conv == "once"
    return Operations(macs=layer.macs * (1 if once else layer.steps))


def _qkformer(item: Layer | Attention, first_conv: FirstConv) -> Operations:
    if isinstance(item, MaskAttention):
        return Operations(acs=item.sops)
    if isinstance(item, Attention):
        return Operations(acs=item.sops_min)
    if item.kind == "real":
        return _real(item, first_conv)
    return Operations() if item.kind == "head" else Operations(acs=item.sops)


def _nonzero(item: Layer | Attention, first_conv: FirstConv) -> Operations:
    if isinstance(item, Layer) and item.kind in ("binary", "integer"):
        return Operations(acs=item.sops_nonzero)
    return _qkformer(item, first_conv)


def _spikingformer(item: Layer | Attention, _first_conv: FirstConv) -> Operations:
    if isinstance(item, MaskAttention):
        return Operations()
    if isinstance(item, Attention):
        return Operations(acs=item.sops_min)
    dense = item.steps * (item.macs + item.outputs * item.bias)
    return Operations(acs=item.mean * dense) if item.kind == "binary" else Operations(macs=dense)


def _events(item: Layer | Attention, first_conv: FirstConv) -> Operations:
    if isinstance(item, MaskAttention):
        return Operations(acs=item.sops)
    if isinstance(item, Attention):
        return Operations(acs=item.sops_events)
    if item.kind == "real":
        return _real(item, first_conv)
    if item.kind == "head":
        return Operations(macs=item.steps * item.macs)
    return Operations(acs=item.adds / item.samples)


CONVENTIONS: dict[str, Callable[[Layer | Attention, FirstConv], Operations]] = {
    "qkformer": _qkformer,
    "nonzero": _nonzero,
    "spikingformer": _spikingformer,
    "events": _events,
}


def totals(
    measured: "Measurement",
    *,
    mac_pj: float = MAC_PJ,
    addition_pj: float = ADDITION_PJ,
    first_conv: FirstConv = "once",
) -> dict[str, dict[str, Any]]:
    """``macs``, ``acs`` and ``mJ`` of the whole model by convention.

    Args:
        mac_pj, addition_pj: energy of an operation.
        first_conv: how often a static image's convolution counts; Spikingformer's is always T
            times.
    """
    result = {}
    for name, count in CONVENTIONS.items():
        parts = [count(item, first_conv) for item in (*measured.layers, *measured.attention)]
        total = Operations(sum(p.macs for p in parts), sum(p.acs for p in parts))
        result[name] = {**total._asdict(), "mJ": total.millijoule(mac_pj, addition_pj)}
    return result


def of(item: Layer | Attention) -> dict[str, float]:
    """mJ of one layer or attention by convention."""
    return {name: count(item, "once").millijoule() for name, count in CONVENTIONS.items()}


def breakdown(measured: "Measurement", convention: str = "qkformer") -> dict[str, float]:
    """mJ by part of the network, as the paper's table has them; the head where it counts."""
    parts: dict[str, float] = {}
    for item in (*measured.layers, *measured.attention):
        counted = CONVENTIONS[convention](item, "once")
        if any(counted) or not (isinstance(item, Layer) and item.kind == "head"):
            name = part(item.layer)
            parts[name] = parts.get(name, 0.0) + counted.millijoule()
    return parts


def part(path: str) -> str:
    """ "stages.1.blocks.0.mixer.branch.q.conv" -> "stage 2 mixer".

    Paths that are not made of stages, embeddings and blocks give their first name and number.
    """
    names = path.split(".")
    if names[0] != "stages" or len(names) < 3:
        return " ".join(names[:2] if names[1:2] and names[1].isdigit() else names[:1])
    stage = int(names[1]) + 1
    if names[2] == "embed":
        return f"embed {stage}"
    return f"stage {stage} {'mixer' if 'mixer' in names else 'mlp'}"
