"""What is measured on the way: sums of an epoch, firing rates, what is wrong without an error."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qkformer.neurons import FIRING, SFA
from qkformer.text import some_of
from qkformer.training.distributed import World

MEASURED_BATCHES = 10  # of a test; what fires in none of them is as good as dead
LEAST_SCALE = 2.0**-16  # what overflows float16 even so is no gradient to learn from


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line.

    Attributes:
        record: What is known of the step at fault, for failed_step.json.
    """

    def __init__(self, message: str, record: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.record = record or {}


# ------------------------------------------------------------------------------- of an epoch


@dataclass
class EpochMetrics:
    """How far an epoch has come, and the sums of which its metrics are made; of this process.

    What a step leaves on the device is kept there until `look`, which makes a GPU wait.

    Attributes:
        done: Samples behind us, of all processes together.
        steps: Updates, with those left out.
        skipped: Updates left out, where float16 overflowed.
        batches: Batches of this process.
        seen: Samples of this process that could be read.
        damaged: Those that could not.
        loss, correct, rate, gradient_norm: Sums over batches, samples, steps, updates.
        seconds: Time spent; `waited` of it for data.
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
    waited: float = 0.0

    def __post_init__(self) -> None:
        self._steps: list[tuple[float, Tensor, list[Tensor]]] = []  # rate, norm, batches' results
        self._batches: list[Tensor] = []
        self.start_clock()

    def start_clock(self) -> None:
        """From here on, time counts."""
        self._last_look = time.perf_counter()

    def next_of(self, batches: Iterator) -> Any:
        """The next batch, the time spent waiting for it being counted."""
        start = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - start
        return batch

    def add_batch(self, loss: Tensor, correct: Tensor, seen: int, damaged: int) -> None:
        """Take in a batch: its mean loss, and how many of its samples were right, seen, damaged."""
        self._batches += [loss, correct]
        self.seen += seen
        self.damaged += damaged

    def add_step(self, rate: float, norm: Tensor, samples: int) -> None:
        """Take in an update: learning rate, 2-norm of the gradient, samples of all processes."""
        self._steps.append((rate, norm, self._batches))
        self._batches = []
        self.done += samples

    def look(self, epoch: int, *, may_overflow: bool) -> None:
        """Look at the steps since the last call and add them to the sums.

        Args:
            epoch: Of these steps.
            may_overflow: The gradient scaler takes care of gradients that are not finite.

        Raises:
            TrainingError: a loss is not finite; or a gradient, without a scaler.
        """
        tensors = [t.double() for _, norm, batches in self._steps for t in (norm, *batches)]
        values = iter(torch.stack(tensors).tolist())
        for rate, _, batches in self._steps:
            norm, *results = (next(values) for _ in range(1 + len(batches)))
            losses = results[::2]
            for what, found in (("loss", losses), ("gradient", [] if may_overflow else [norm])):
                if not all(abs(value) < float("inf") for value in found):
                    facts = {"losses": losses, "gradient_norm": norm, "learning_rate": rate}
                    raise self._failure(what, found, {"epoch": epoch, "step": self.steps} | facts)
            self.steps += 1
            self.batches += len(losses)
            self.loss += sum(losses)
            self.correct += sum(results[1::2])
            self.rate += rate
            if norm < float("inf"):
                self.gradient_norm += norm
            else:
                self.skipped += 1
        self._steps = []
        now = time.perf_counter()
        self.seconds, self._last_look = self.seconds + now - self._last_look, now

    @staticmethod
    def _failure(what: str, values: list[float], record: dict[str, Any]) -> TrainingError:
        broken = next(value for value in values if not abs(value) < float("inf"))
        return TrainingError(
            f"the {what} is {broken} in step {record['step']} of epoch {record['epoch']} (learning "
            f"rate {record['learning_rate']:.3g}); the checkpoints are as they were",
            record,
        )

    def check_scale(self, scaler: torch.amp.GradScaler, epoch: int) -> None:
        """Refuse to go on where every step overflows.

        Raises:
            TrainingError: with what may help.
        """
        scale = scaler.get_scale()
        if scaler.is_enabled() and scale < LEAST_SCALE:
            raise TrainingError(
                f"the fp16 gradient scale fell to {scale:.1e} in epoch {epoch}: {self.skipped} of "
                f"{self.steps} steps overflowed and changed nothing; a lower optimizer.lr, "
                "optimizer.clip_grad_norm or compute.precision: bf16 may help",
                {"epoch": epoch, "step": self.steps, "amp_scale": scale},
            )

    def since(self, before: "EpochMetrics") -> dict[str, float]:
        """Means over the steps since a copy was made, for a look inside an epoch.

        loss and data_wait, the share of the time spent waiting for data, are of this process;
        images_per_second is of all.
        """
        seconds = self.seconds - before.seconds
        return {
            "loss": (self.loss - before.loss) / (self.batches - before.batches),
            "lr": (self.rate - before.rate) / (self.steps - before.steps),
            "images_per_second": (self.done - before.done) / seconds,
            "data_wait": (self.waited - before.waited) / seconds,
        }

    @classmethod
    def share(cls, saved: list[dict[str, Any]], world: World) -> "EpochMetrics":
        """This process's part of what all processes saved, however many they are now."""
        if len(saved) == world.size:
            return cls(**saved[world.rank])
        counted = ("batches", "seen", "damaged", "loss", "correct")  # by each for itself
        sums = {name: sum(part[name] for part in saved) if world.is_main else 0 for name in counted}
        return cls(**saved[0] | sums)

    def total(self, world: World) -> dict[str, Any]:
        """Metrics of the epoch, over all processes.

        train_lr and gradient_norm are means over the steps; train_loss and train_acc1 (%) are of
        the samples as augmented, each with the weights of its own step; data_wait is the share of
        the time that was spent waiting for data.
        """
        own = (self.loss, self.batches, self.correct, self.seen, self.damaged, self.waited)
        loss, batches, correct, seen, damaged, waited = world.total(
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
            "data_wait": waited / world.size / self.seconds,
        }


# ------------------------------------------------------------------------------ of the model


class FiringRates:
    """Mean spikes per neuron and time step of every layer of neurons; an ANN has none.

    Args:
        model: The model itself, not its DistributedDataParallel wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = {
            name: module for name, module in model.named_modules() if isinstance(module, FIRING)
        }
        self.sums = dict.fromkeys(self.layers, 0.0)
        self.calls = dict.fromkeys(self.layers, 0)

    def measure(self, model: nn.Module, samples: Tensor) -> Tensor:
        """The model's output, its layers' spikes being counted on the way."""
        handles = [
            layer.register_forward_hook(self._hook(name)) for name, layer in self.layers.items()
        ]
        try:
            return model.forward(samples)  # not model(samples): compiled code has no hooks
        finally:
            for handle in handles:
                handle.remove()

    def rates(self, world: World) -> dict[str, float]:
        """Layer -> firing rate over all processes, of the layers that ran."""
        sums = torch.tensor([float(self.sums[name]) for name in self.layers], dtype=torch.float64)
        calls = torch.tensor([self.calls[name] for name in self.layers], dtype=torch.float64)
        sums, calls = world.total(sums), world.total(calls)
        return {
            name: (total / count).item()
            for name, total, count in zip(self.layers, sums, calls, strict=True)
            if count
        }

    def _hook(self, name: str):
        def count(module: nn.Module, _inputs: tuple, spikes: Tensor) -> None:
            rate = spikes.detach().mean(dtype=torch.float32)  # stays on the device
            # where integers stand for spikes, those of one of the steps that they unroll to
            whole = isinstance(module, SFA) and not module.divide
            self.sums[name] += rate / module.levels if whole else rate
            self.calls[name] += 1

        return count


def by_stage(rates: dict[str, float]) -> dict[str, float]:
    """Mean firing rate of the layers of every stage: stages.0, stages.1, ..., head_neuron."""
    stages: dict[str, list[float]] = {}
    for name, rate in rates.items():
        parts = name.split(".")
        stage = ".".join(parts[:2]) if parts[0] == "stages" else parts[0]
        stages.setdefault(stage, []).append(rate)
    return {stage: sum(values) / len(values) for stage, values in stages.items()}


def dead_layers(rates: dict[str, float]) -> list[str]:
    """A line for the layers that never fired, and one for those that always did."""
    kinds = {"silent (no spike)": 0.0, "saturated (spikes only)": 1.0}
    lines = []
    for kind, dead in kinds.items():
        names = [name for name, rate in rates.items() if rate == dead]
        if names:
            # where all are silent, the first one tells why
            lines.append(f"{len(names)} of {len(rates)} neuron layers {kind}: {some_of(names)}")
    return lines


def not_finite(model: nn.Module) -> list[str]:
    """Names of parameters, gradients and buffers that are not finite."""
    names = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            names.append(f"{name}.grad")
    return names


def check_weights(model: nn.Module, epoch: int) -> None:
    """A neuron fed with NaN falls silent, so NaN weights need not show in the loss.

    Raises:
        TrainingError: names the first parameter or buffer that is not finite.
    """
    names = not_finite(model)
    if names:
        raise TrainingError(
            f"{names[0]} is no longer finite after epoch {epoch}; the checkpoints are as they were",
            {"epoch": epoch, "not_finite": names},
        )
