"""What every network here is: stages, then a head; with the interface of a timm model."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from qkformer.models.stage import SpikingStage
from qkformer.neurons import NEURONS, PLIF, SpikingNeuron


class TimeMean(nn.Module):
    """[T, B, C] -> [B, C]: a module, for one that goes from step to step to stand in its place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


class SpikingNetwork(nn.Module):
    """Stages, one after the other, then the mean over space and time, and a linear head.

    Args:
        stages: from input to output.
        head_neuron: between the mean over space and that over time; None for none.
        features: channels that reach the head, if ``head_neuron`` changes their number.
        num_classes: logits; 0 for no head.
        in_chans: channels of an image or event frame.
        T: time steps to which a static image is repeated.
        drop_rate: dropout in front of the head.
        global_pool: "avg" over H, W and T, or "" (with ``num_classes=0``) to return the features
            [T, B, C, h, w] themselves.

    Shape: images [B, C, H, W], or frames [B, T, C, H, W] of any T -> logits [B, num_classes].
        The model's downsampling must divide H and W.

    Raises:
        ValueError: an argument has no such value; in forward: an input of another shape.
    """

    ssa: str | None = None  # "fixed" or "original", where there is spiking self-attention

    def __init__(
        self,
        stages: Iterable[SpikingStage],
        head_neuron: nn.Module | None = None,
        features: int | None = None,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        T: int = 4,
        drop_rate: float = 0.0,
        global_pool: Literal["avg", ""] = "avg",
    ):
        super().__init__()
        check_integers(num_classes=(num_classes, 0), in_chans=(in_chans, 1), T=(T, 1))
        check_rates(drop_rate=drop_rate)
        self.T, self.in_chans, self.num_classes = T, in_chans, num_classes
        self.stages = nn.ModuleList(stages)
        self.feature_info = []
        self.downsampling = 1
        for i, stage in enumerate(self.stages):
            self.downsampling *= stage.downsampling
            self.feature_info.append(
                {"num_chs": stage.dim, "reduction": self.downsampling, "module": f"stages.{i}"}
            )
        self.num_features = self.stages[-1].dim
        self.head_hidden_size = features or self.num_features
        self.head_neuron = head_neuron
        self.over_time = TimeMean()
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        """Logits [B, num_classes]; ``per_step``: those of every time step, [T, B, num_classes]."""
        return self.forward_head(self.forward_features(x), per_step=per_step)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images or frames -> [T, B, C, h, w].

        Sums of spikes, spikes, or membrane currents: what the wiring leaves.
        """
        x, time_steps = self._time_first(x)
        for stage in self.stages:
            x = stage(x, time_steps)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False, per_step: bool = False) -> Tensor:
        """[T, B, C, h, w] -> logits [B, num_classes], or the pooled features [B, C]; ``per_step``:
        of every time step, with T in front."""
        if not self.global_pool:
            return x
        # over H and W, in the order of memory: the gradient comes in that order, too
        x = x.mean((3, 4)) if x.is_contiguous() else x.permute(0, 1, 3, 4, 2).mean((2, 3))
        if self.head_neuron is not None:
            x = self.head_neuron(x)
        if not per_step:
            x = self.over_time(x)
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
        check_integers(num_classes=(num_classes, 0))
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.num_classes = num_classes
        like = next(self.parameters())
        self.head = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
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


def neuron_maker(
    neuron: str | Callable[..., SpikingNeuron], neuron_args: dict[str, Any] | None, backend: str
) -> Callable[..., SpikingNeuron]:
    """What makes a model's neurons.

    Args:
        neuron: a name of ``qkformer.neurons.NEURONS``, or a class or function.
        neuron_args: its arguments in every layer, such as ``tau``; a layer's own come over them.
        backend: "auto", "torch", "cupy".

    Raises:
        ValueError: there is no such neuron, or it does not take these arguments.
    """
    if not (callable(neuron) or (isinstance(neuron, str) and neuron in NEURONS)):
        raise ValueError(f"neuron must be one of {tuple(NEURONS)}, got {neuron!r}")
    make = partial(NEURONS.get(neuron, neuron), backend=backend, **(neuron_args or {}))
    try:
        make()
    except TypeError as error:
        raise ValueError(f"neuron_args do not fit neuron={neuron!r}: {error}") from error
    return make


def check_integers(**bounds: tuple[int, int]) -> None:
    """ValueError if a value, given with the least that it may be, is no such integer."""
    for name, (value, least) in bounds.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_rates(**rates: float) -> None:
    """ValueError if a value is not in [0, 1)."""
    for name, value in rates.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
