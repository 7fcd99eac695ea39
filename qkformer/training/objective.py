"""What training minimises: the loss of a batch, and the logits that its accuracy is of."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkformer.loss import SmoothBinaryCrossEntropy, tet_loss
from qkformer.text import did_you_mean


@dataclass
class LossConfig:
    """The loss, in training only; tests report cross-entropy.

    Args:
        name: cross_entropy; or bce, binary cross-entropy of every class by itself.
        label_smoothing: Share of the target spread over all classes.
        tet_lambda: Temporal efficient training: every time step is to be right by itself, and this
            share of the loss draws all logits to `tet_target`; null for the mean over time.
        tet_target: What the logits are drawn to.
        teacher: Hard distillation: an image model of timm's, whose classes a second head of the
            network learns; null for none.
        teacher_weights: Checkpoint of the teacher; null for those that timm fetches.
        distillation: Share of the loss that is the second head's.
    """

    name: Literal["cross_entropy", "bce"] = "cross_entropy"
    label_smoothing: float = 0.0
    tet_lambda: float | None = None
    tet_target: float = 1.0
    teacher: str | None = None
    teacher_weights: str | None = None
    distillation: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing: must be in 0 <= value < 1, got {self.label_smoothing}"
            )
        if self.tet_lambda is not None and not 0 <= self.tet_lambda <= 1:
            raise ValueError(f"tet_lambda: must be in 0 <= value <= 1, got {self.tet_lambda}")
        if not math.isfinite(self.tet_target):
            raise ValueError(f"tet_target: must be finite, got {self.tet_target}")
        if self.tet_target != 1 and not self.tet_lambda:
            raise ValueError("tet_target: acts with tet_lambda only")
        if not 0 < self.distillation < 1:
            raise ValueError(f"distillation: must be in 0 < share < 1, got {self.distillation}")
        if self.teacher is None:
            for key, unused in (("teacher_weights", None), ("distillation", 0.5)):
                if getattr(self, key) != unused:
                    raise ValueError(f"{key}: acts with teacher only")
        elif not timm.is_model(self.teacher):
            known = timm.list_models()
            raise ValueError(
                f"teacher: no model {self.teacher!r}{did_you_mean(self.teacher, known)}"
            )
        elif self.tet_lambda is not None:
            raise ValueError("tet_lambda: does not go together with teacher")


class Objective:
    """The loss that is configured.

    Args:
        config: The `loss` section.
        teacher: The model that it names, on its device, in evaluation mode.

    Attributes:
        options: What the network's forward is told besides its input.
    """

    def __init__(self, config: LossConfig, teacher: nn.Module | None = None) -> None:
        self.config, self.teacher = config, teacher
        kind = {"cross_entropy": nn.CrossEntropyLoss, "bce": SmoothBinaryCrossEntropy}[config.name]
        self.criterion = kind(label_smoothing=config.label_smoothing)
        self.options: dict[str, Any] = {"per_step": True} if config.tet_lambda is not None else {}

    @torch.no_grad()
    def taught(self, samples: Tensor) -> Tensor | None:
        """The teacher's classes [B] of a batch, None without one."""
        return None if self.teacher is None else self.teacher(samples).argmax(1)

    def __call__(
        self, logits: Tensor | tuple[Tensor, Tensor], targets: Tensor, taught: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of a batch, a mean, and its logits [B, classes].

        Args:
            logits: [B, classes]; [T, B, classes] under TET; of both heads with a teacher. Where
                there are several, the accuracy is, as in testing, that of their mean.
            targets: Class indices [B], or probabilities [B, classes].
            taught: The teacher's classes [B].
        """
        if taught is not None:
            first, second = map(_in_full, logits)
            share = self.config.distillation
            own, learnt = self.criterion(first, targets), F.cross_entropy(second, taught)
            return (1 - share) * own + share * learnt, (first + second) / 2
        logits = _in_full(logits)
        if not self.options:
            return self.criterion(logits, targets), logits
        weight, level = self.config.tet_lambda, self.config.tet_target
        loss = tet_loss(logits, targets, self.criterion, weight=weight, level=level)
        return loss, logits.mean(0)


def _in_full(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
