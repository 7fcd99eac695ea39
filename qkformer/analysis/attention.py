"""What one pass over data counts of an attention: integers, and what follows.

Field names are those of the files in tests/golden/energy.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sums:
    """What an attention's neuron is fed with, before scaling: count, sum and sum of squares."""

    count: int
    total: int
    squares: int

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def variance(self) -> float:
        return (self.squares - self.total * self.total / self.count) / self.count


@dataclass(frozen=True)
class Attention:
    """The products or the mask of an attention, whose sums are over T, B and all others.

    Attributes:
        layer, kind: module path and class of the attention.
        heads, dim, tokens, steps: heads, channels C of q, tokens N, T.
        samples: B.
        numel: elements of q, and of k.
        q_sum, k_sum: spikes.
        sums: of which E and Var are computed in the paper.
    """

    layer: str
    kind: str
    heads: int
    dim: int
    tokens: int
    steps: int
    samples: int
    numel: int
    q_sum: int
    k_sum: int
    sums: Sums

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def operands(self) -> int:
        """Elements of q and k, and of v where there is one."""
        return 2 * self.numel

    def to_json(self) -> dict[str, Any]:
        names = ("layer", "kind", "heads", "dim", "tokens", "steps", "q_sum", "k_sum", "numel")
        return {name: getattr(self, name) for name in (*names, *self._own)}


@dataclass(frozen=True)
class MaskAttention(Attention):
    """mask * k, as QKTA and QKCA.

    Attributes:
        mask_sum, mask_numel, masked_sum: spikes of the mask, its elements, spikes of mask * k.
    """

    mask_sum: int = 0
    mask_numel: int = 0
    masked_sum: int = 0

    _own = ("mask_sum", "mask_numel", "masked_sum", "macs", "sops")

    @property
    def macs(self) -> int:
        """Sums and gates of one step and sample; no MACs, so in no total of MACs."""
        return 2 * self.tokens * self.dim

    @property
    def sops(self) -> float:
        """Additions per sample, one for every spike of q and of what passes the mask."""
        return (self.q_sum + self.masked_sum) / self.samples


@dataclass(frozen=True)
class ProductAttention(Attention):
    """q k^T v, as SSA, counted as q (k^T v).

    Attributes:
        v_sum, v_numel: spikes of v and its elements.
        kv_coincidences: sum of all elements of k^T v.
        kv_steps: of k and v, fewer than q's where they are means over its steps.
    """

    v_sum: int = 0
    v_numel: int = 0
    kv_coincidences: int = 0
    kv_steps: int = 1

    _own = ("v_sum", "macs", "kv_coincidences", "sops_min", "sops_events")

    @property
    def operands(self) -> int:
        return 2 * self.numel + self.v_numel

    @property
    def value_dim(self) -> int:
        """Channels of v per head."""
        return self.head_dim * self.v_numel // self.numel

    @property
    def macs(self) -> int:
        """Of both products, one step and sample; k^T v first."""
        return 2 * self.tokens * self.dim * self.value_dim

    @property
    def executed_macs(self) -> int:
        """In the cheaper order, with q (k^T v) or with (q k^T) v."""
        return self.heads * self.tokens * min(self._orders)

    @property
    def executed_macs_of_all_steps(self) -> int:
        kv_first, qk_first = self._orders
        saved = kv_first // 2 * (self.steps - self.kv_steps) if kv_first <= qk_first else 0
        return self.executed_macs * self.steps - self.heads * self.tokens * saved

    @property
    def _orders(self) -> tuple[int, int]:
        """MACs per head and token with k^T v first, and with q k^T first."""
        d, e = self.head_dim, self.value_dim
        return 2 * d * e, self.tokens * (d + e)

    @property
    def sops_min(self) -> float:
        f_q, f_k, f_v = self.rates
        return self.steps * self.macs / 2 * (f_q + min(f_k, f_v))

    @property
    def sops_events(self) -> float:
        return (self.kv_coincidences + self.value_dim * self.q_sum) / self.samples

    @property
    def rates(self) -> tuple[float, float, float]:
        """f_Q, f_K, f_V"""
        return self.q_sum / self.numel, self.k_sum / self.numel, self.v_sum / self.v_numel
