"""How far an epoch has come, and what it measured on the way."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qkformer.training.distributed import World


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line.

    Attributes:
        record: What is known of the step at fault, for failed_step.json.
    """

    def __init__(self, message: str, record: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.record = record or {}


@dataclass
class Step:
    """What an update left on the device, to be looked at later: a look makes the GPU wait.

    Attributes:
        rate: Learning rate.
        losses, correct: Of every batch, its mean loss and its number of right answers.
        norm: 2-norm of the gradient.
    """

    rate: float
    losses: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    norm: Tensor | None = None


@dataclass
class EpochProgress:
    """How far an epoch has come, and the sums of which its metrics are made; of this process.

    Attributes:
        done: Samples behind us, of all processes together.
        steps: Updates, with those left out.
        skipped: Updates left out, where float16 overflowed.
        batches: Batches of this process.
        seen: Samples of this process that could be read.
        damaged: Those that could not.
        loss, correct, rate, gradient_norm: Sums over batches, samples, steps, updates.
        seconds: Time spent.
    """

    done: int = 0
    steps: int = 0
    skipped: int = 0
    batches: int = 0
    seen: int = 0
    damaged: int = 0
    loss: float = 0.0
    correct: float = 0.0
    rate: float = 0.0
    gradient_norm: float = 0.0
    seconds: float = 0.0

    def add(self, steps: list[Step], *, epoch: int, may_overflow: bool) -> None:
        """Look at finished steps and add them to the sums.

        Args:
            steps: The steps since the last call.
            epoch: Of this progress.
            may_overflow: The gradient scaler takes care of gradients that are not finite.

        Raises:
            TrainingError: a loss is not finite; or a gradient, without a scaler.
        """
        tensors = [[*step.losses, *step.correct, step.norm] for step in steps]
        flat = iter(torch.stack([t.double() for step in tensors for t in step]).tolist())
        for step in steps:
            losses = [next(flat) for _ in step.losses]
            correct = [next(flat) for _ in step.correct]
            norm = next(flat)
            for what, values in (("loss", losses), ("gradient", [] if may_overflow else [norm])):
                broken = next((value for value in values if not abs(value) < float("inf")), None)
                if broken is not None:
                    where = f"step {self.steps} of epoch {epoch} (learning rate {step.rate:.3g})"
                    message = f"the {what} is {broken} in {where}; the checkpoints are as they were"
                    facts = {"losses": losses, "gradient_norm": norm, "learning_rate": step.rate}
                    at = {"epoch": epoch, "step": self.steps}
                    raise TrainingError(message, at | facts)
            self.steps += 1
            self.batches += len(losses)
            self.loss += sum(losses)
            self.correct += sum(correct)
            self.rate += step.rate
            if norm < float("inf"):
                self.gradient_norm += norm
            else:
                self.skipped += 1

    @classmethod
    def share(cls, saved: list[dict[str, Any]], world: World) -> "EpochProgress":
        """This process's part of what all processes saved, however many they are now."""
        if len(saved) == world.size:
            return cls(**saved[world.rank])
        counted = ("batches", "seen", "damaged", "loss", "correct")  # by each for itself
        sums = {name: sum(part[name] for part in saved) if world.is_main else 0 for name in counted}
        return cls(**saved[0] | sums)

    def metrics(self, world: World) -> dict[str, Any]:
        """Metrics of the epoch, over all processes.

        train_lr and gradient_norm are means over the steps; train_loss and train_acc1 (%) are of
        the samples as augmented, each with the weights of its own step.
        """
        own = (self.loss, self.batches, self.correct, self.seen, self.damaged)
        loss, batches, correct, seen, damaged = world.total(
            torch.tensor(own, dtype=torch.float64)
        ).tolist()
        updates = self.steps - self.skipped
        return {
            "train_lr": self.rate / self.steps,
            "train_loss": loss / batches,
            "train_acc1": 100 * correct / seen,
            "gradient_norm": self.gradient_norm / updates if updates else None,
            "skipped_steps": self.skipped,
            "damaged_samples": int(damaged),
            "images_per_second": seen / self.seconds,
        }
