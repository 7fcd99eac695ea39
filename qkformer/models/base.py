"""The model behind every family: stages, then a head; with the interface of a timm model.

A family is a list of stages, a residual wiring and a few options; see ``qkformer.py``,
``spikformer.py``, ``maxformer.py``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite, prod
from typing import Literal

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from qkformer.layers.block import MIXERS, Wiring, check_wiring
from qkformer.models.stage import SpikingStage, Stage
from qkformer.neurons import NEURONS, PLIF, SpikingNeuron


class SpikingTransformer(nn.Module):
    """Spiking vision transformer.

    Args:
        stages: embeddings and blocks, from input to output.
        num_classes: logits; 0 for no head.
        in_chans: channels of an image or event frame.
        T: time steps to which a static image is repeated.
        residual: "aba", "pa" or "ms", see :class:`qkformer.layers.Residual`.
        ssa: "fixed", or "original" for the published leak, see SpikingSelfAttention.
        attn_scale: factor on q k^T v in SSA; None for none.
        qkv_bias: biases in SSA's q, k, v.
        neuron: a name of ``qkformer.neurons.NEURONS`` ("lif", "if", "plif"), or a class or function
            that makes a neuron from ``backend`` and ``v_threshold``.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        drop_rate: dropout in front of the head.
        global_pool: "avg" over H, W and T, or "" (with ``num_classes=0``) to return the features
            [T, B, C, h, w] themselves.
        backend: of the neurons: "auto", "torch", "cupy".
        conv_std: standard deviation of the truncated normal from which convolution weights start;
            None for PyTorch's default.

    Shape: images [B, C, H, W], or frames [B, T, C, H, W] of any T -> logits [B, num_classes].
        The model's downsampling must divide H and W.

    Raises:
        ValueError: an option has no such value, or does not fit the others; in forward: an input
            of another shape.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        T: int = 4,
        residual: Wiring = "aba",
        ssa: str = "fixed",
        attn_scale: float | None = 0.125,
        qkv_bias: bool = False,
        neuron: str | Callable[..., SpikingNeuron] = "lif",
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        global_pool: Literal["avg", ""] = "avg",
        backend: str = "auto",
        conv_std: float | None = None,
    ):
        super().__init__()
        _check_options(stages, num_classes, in_chans, T, residual, ssa, neuron)
        _check_numbers(drop_path_rate, drop_rate, attn_scale)
        self.T, self.in_chans, self.num_classes, self.ssa = T, in_chans, num_classes, ssa
        self.downsampling = prod(stage.embed.downsampling for stage in stages)
        make_neuron = partial(NEURONS.get(neuron, neuron), backend=backend)
        depth = sum(stage.depth for stage in stages)
        drop_rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.stages = nn.ModuleList()
        self.feature_info = []
        chans, reduction = in_chans, 1
        for i, stage in enumerate(stages):
            self.stages.append(
                SpikingStage(
                    chans,
                    stage,
                    stem=i == 0,
                    wiring=residual,
                    neuron=make_neuron,
                    drop_rates=[drop_rates.pop(0) for _ in range(stage.depth)],
                    ssa_options={"scale": attn_scale, "qkv_bias": qkv_bias, "ssa": ssa},
                )
            )
            chans, reduction = stage.dim, reduction * stage.embed.downsampling
            self.feature_info.append(
                {"num_chs": chans, "reduction": reduction, "module": f"stages.{i}"}
            )
        self.num_features = self.head_hidden_size = chans
        self.head_neuron = make_neuron() if residual == "ms" else None
        if conv_std is not None:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.trunc_normal_(module.weight, std=conv_std)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images or frames -> [T, B, C, h, w].

        Sums of spikes under "aba", spikes under "pa", membrane currents under "ms".
        """
        x, time_steps = self._time_first(x)
        for stage in self.stages:
            x = stage(x, time_steps)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[T, B, C, h, w] -> logits [B, num_classes], or the pooled features [B, C]."""
        if not self.global_pool:
            return x
        x = x.mean((3, 4))
        if self.head_neuron is not None:
            x = self.head_neuron(x)
        x = x.mean(0)
        return x if pre_logits else self.head(self.head_drop(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """timm's interface to the outputs of the stages, averaged over time: [B, C, h, w] each.

        Args:
            x: images or frames, as for ``forward``.
            indices: stages: a list, the last n, or None for all.
            norm: must be False; the models have no norm behind their last stage.
            stop_early: do not run stages behind the last one wanted.
            output_fmt: "NCHW".
            intermediates_only: leave out the final features [T, B, C, h, w].
        """
        if output_fmt != "NCHW" or norm:
            raise ValueError(f"only output_fmt='NCHW', norm=False; got {output_fmt!r}, {norm}")
        wanted, last = feature_take_indices(len(self.stages), indices)
        x, time_steps = self._time_first(x)
        intermediates = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x, time_steps)
            if i in wanted:
                intermediates.append(x.mean(0))
        return intermediates if intermediates_only else (x, intermediates)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for ``num_classes``, 0 for none; ``global_pool`` "avg" or "", None to keep it.

        Raises:
            ValueError: another pooling, or "" with a head.
        """
        if global_pool not in (None, "avg", "") or (global_pool == "" and num_classes):
            raise ValueError(
                f"global_pool must be 'avg', or '' with num_classes=0; got {global_pool!r} "
                f"with num_classes={num_classes}"
            )
        _check_integers(num_classes=(num_classes, 0))
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.num_classes = num_classes
        like = next(self.parameters())
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(device=like.device, dtype=like.dtype)
        if num_classes:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def group_matcher(self, coarse: bool = False) -> dict:
        """timm's description of the layers, for layer-wise learning-rate decay."""
        blocks = r"^stages\.(\d+)"
        if not coarse:
            blocks = [
                (r"^stages\.(\d+)\.embed", None),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^head_neuron", (99999,)),
            ]
        return {"stem": r"^stages\.0\.embed", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are no weights: PLIF's time constants."""
        return {f"{name}.w" for name, module in self.named_modules() if isinstance(module, PLIF)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for backward, and compute the rest again there."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def _time_first(self, x: Tensor) -> tuple[Tensor, int]:
        """[B, C, H, W] -> [1, B, C, H, W] and T; [B, T, C, H, W] -> [T, B, C, H, W] and its T."""
        c, d = self.in_chans, self.downsampling
        frames = x.ndim == 5
        if not (
            x.ndim in (4, 5)
            and x.shape[-3] == c
            and all(size > 0 and size % d == 0 for size in x.shape[-2:])
            and (not frames or x.shape[1] > 0)
        ):
            raise ValueError(
                f"expected [B, {c}, H, W] or [B, T, {c}, H, W] with H and W multiples of {d}, "
                f"got {list(x.shape)}"
            )
        return (x.transpose(0, 1), x.shape[1]) if frames else (x.unsqueeze(0), self.T)


def _check_options(
    stages: Sequence[Stage],
    num_classes: int,
    in_chans: int,
    T: int,
    residual: str,
    ssa: str,
    neuron: str | Callable,
) -> None:
    _check_integers(num_classes=(num_classes, 0), in_chans=(in_chans, 1), T=(T, 1))
    check_wiring(residual)
    if ssa not in ("fixed", "original"):
        raise ValueError(f"ssa must be 'fixed' or 'original', got {ssa!r}")
    if not (callable(neuron) or (isinstance(neuron, str) and neuron in NEURONS)):
        raise ValueError(f"neuron must be one of {tuple(NEURONS)}, got {neuron!r}")
    mixers = [stage.mixer for stage in stages if stage.depth]
    for mixer in mixers:
        if mixer not in MIXERS:
            raise ValueError(f"a mixer must be one of {tuple(MIXERS)}, got {mixer!r}")
    if ssa == "original" and "ssa" not in mixers:
        raise ValueError("ssa='original' is a fault of SSA, which no stage of this model uses")


def _check_numbers(drop_path_rate: float, drop_rate: float, attn_scale: float | None) -> None:
    for name, value in (("drop_path_rate", drop_path_rate), ("drop_rate", drop_rate)):
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    if not (attn_scale is None or (isinstance(attn_scale, int | float) and isfinite(attn_scale))):
        raise ValueError(f"attn_scale must be a finite number or None, got {attn_scale!r}")


def _check_integers(**bounds: tuple[int, int]) -> None:
    for name, (value, least) in bounds.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
