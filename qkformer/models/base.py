"""The model behind every family of spiking transformers.

A family is a list of stages, a residual wiring and a few options; see ``qkformer.py``,
``spikformer.py``, ``maxformer.py``.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from torch import nn

from qkformer.layers.block import MIXERS, Wiring, check_wiring
from qkformer.models.network import SpikingNetwork, check_integers, check_rates, neuron_maker
from qkformer.models.stage import Stage, make_stages
from qkformer.neurons import SpikingNeuron


class SpikingTransformer(SpikingNetwork):
    """Spiking vision transformer.

    Args:
        stages: embeddings and blocks, from input to output.
        in_chans: channels of an image or event frame.
        residual: "aba", "pa" or "ms", see :class:`qkformer.layers.Residual`.
        ssa: "fixed", or "original" for the published leak, see SpikingSelfAttention.
        attn_scale: factor on q k^T v in SSA; None for none.
        qkv_bias: biases in SSA's q, k, v.
        neuron: a name of ``qkformer.neurons.NEURONS`` ("lif", "if", "plif"), or a class or function
            that makes a neuron from ``backend`` and ``v_threshold``.
        neuron_args: further arguments of every neuron, such as ``{"tau": 1.5}``.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        backend: of the neurons: "auto", "torch", "cupy".
        conv_std: standard deviation of the truncated normal from which convolution weights start;
            None for PyTorch's default.
        kwargs: ``num_classes``, ``T``, ``drop_rate``, ``global_pool`` of :class:`SpikingNetwork`.

    Raises:
        ValueError: an option has no such value, or does not fit the others.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        in_chans: int = 3,
        residual: Wiring = "aba",
        ssa: str = "fixed",
        attn_scale: float | None = 0.125,
        qkv_bias: bool = False,
        neuron: str | Callable[..., SpikingNeuron] = "lif",
        neuron_args: dict[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        backend: str = "auto",
        conv_std: float | None = None,
        **kwargs: Any,
    ):
        _check_options(stages, residual, ssa, attn_scale)
        check_integers(in_chans=(in_chans, 1))
        check_rates(drop_path_rate=drop_path_rate)
        make_neuron = neuron_maker(neuron, neuron_args, backend)
        super().__init__(
            make_stages(
                stages,
                in_chans,
                wiring=residual,
                neuron=make_neuron,
                drop_path_rate=drop_path_rate,
                ssa_options={"scale": attn_scale, "qkv_bias": qkv_bias, "ssa": ssa},
            ),
            make_neuron() if residual == "ms" else None,
            in_chans=in_chans,
            **kwargs,
        )
        self.ssa = ssa
        if conv_std is not None:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.trunc_normal_(module.weight, std=conv_std)


def _check_options(
    stages: Sequence[Stage], residual: str, ssa: str, attn_scale: float | None
) -> None:
    check_wiring(residual)
    if ssa not in ("fixed", "original"):
        raise ValueError(f"ssa must be 'fixed' or 'original', got {ssa!r}")
    mixers = [stage.mixer for stage in stages if stage.depth]
    for mixer in mixers:
        if mixer not in MIXERS:
            raise ValueError(f"a mixer must be one of {tuple(MIXERS)}, got {mixer!r}")
    if ssa == "original" and "ssa" not in mixers:
        raise ValueError("ssa='original' is a fault of SSA, which no stage of this model uses")
    if not (attn_scale is None or (isinstance(attn_scale, int | float) and isfinite(attn_scale))):
        raise ValueError(f"attn_scale must be a finite number or None, got {attn_scale!r}")
