"""Mean and variance of what attention neurons are fed with, for independent spikes.

Source: QKFormer (arXiv 2403.16552): with d channels per head, N tokens and firing rates f, sums of
QKTA have E = d f_Q and Var = d f_Q (1 - f_Q), QKCA N in place of d; products of SSA
E = N d p and Var = N d p (1 - p), p = f_Q f_K f_V. At N = 196, d = 64 the largest variances are 16
and 3136: why QKTA needs no scale.
"""

from typing import Any, NamedTuple

from qkformer.analysis.attention import Attention, ProductAttention
from qkformer.analysis.measurement import Measurement


class Moments(NamedTuple):
    mean: float
    variance: float


def binomial(terms: int, p: float) -> Moments:
    """Of a sum of so many independent spikes."""
    return Moments(terms * p, terms * p * (1 - p))


def expected(attention: Attention) -> Moments:
    """For independent spikes of the rates that were measured."""
    if isinstance(attention, ProductAttention):
        f_q, f_k, f_v = attention.rates
        return binomial(attention.tokens * attention.head_dim, f_q * f_k * f_v)
    return binomial(attention.numel // attention.sums.count, attention.q_sum / attention.numel)


def statistics(measured: Measurement) -> list[dict[str, Any]]:
    """A row per attention: measured mean and variance of its sums beside E and Var."""
    rows = []
    for each in measured.attention:
        theory = expected(each)
        row = {"layer": each.layer, "kind": each.kind, "tokens": each.tokens, "d": each.head_dim}
        row |= {"f_q": each.q_sum / each.numel, "f_k": each.k_sum / each.numel}
        if isinstance(each, ProductAttention):
            row["f_v"] = each.rates[2]
        row |= {"mean": each.sums.mean, "E": theory.mean}
        row |= {"variance": each.sums.variance, "Var": theory.variance}
        rows.append(row)
    return rows


# Of one layer and step, N tokens of D channels, as the paper has it: an order of growth each.
COMPLEXITY = [
    {"attention": "VSA", "time": "O(N^2 D)", "space": "O(N^2 + N D)"},
    {"attention": "SSA", "time": "O(N^2 D)", "space": "O(N^2 + N D)"},
    {"attention": "SDSA", "time": "O(N D)", "space": "O(N D)"},
    {"attention": "QKTA", "time": "O(D)", "space": "O(N)"},
    {"attention": "QKCA", "time": "O(N)", "space": "O(D)"},
]
