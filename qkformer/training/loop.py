"""One pass of training, one pass of testing."""

import time
from collections.abc import Callable
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qkformer.console import Progress
from qkformer.data.loaders import read
from qkformer.training.distributed import World
from qkformer.training.health import MEASURED_BATCHES, FiringRates, not_finite
from qkformer.training.learner import Learner, autocast
from qkformer.training.progress import EpochProgress, Step, TrainingError

STEPS_BETWEEN_LOOKS = 10
LEAST_SCALE = 2.0**-16  # what overflows float16 even so is no gradient to learn from
ALONE = World()


class Pauses(Protocol):
    """What may happen between two steps: a checkpoint, or the end of the process."""

    def due(self) -> bool:
        """Whether to pause now. Every process must ask equally often, and all get one answer."""

    def take(self, progress: EpochProgress) -> None:
        """Save; does not return where the run was asked to stop."""


def train_one_epoch(
    learner: Learner,
    loader: DataLoader,
    *,
    epoch: int,
    augment: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    learning_rate: Callable[[float], float],
    on_damaged: str = "error",
    progress: EpochProgress | None = None,
    world: World = ALONE,
    pauses: Pauses | None = None,
) -> EpochProgress:
    """Train on what is left of an epoch.

    Args:
        loader: From qkformer.data.loaders.training_loader.
        epoch: Index of this epoch, from 0.
        augment: Samples on the device, as loaded, class indices, epoch -> augmented input of the
            model, class indices or probabilities.
        learning_rate: Epochs behind us (a fraction inside an epoch) -> learning rate.
        on_damaged: What becomes of samples that cannot be read: error or skip.
        progress: Where the epoch was interrupted; None at its start.

    Returns:
        The progress at the end, from which the epoch's metrics follow.

    Raises:
        TrainingError: a loss, a gradient or a weight is no longer finite.
        DataError: samples cannot be read.
    """
    progress = progress or EpochProgress()
    sampler, device, last_look = loader.batch_sampler, learner.device, time.monotonic()
    sampler.set_position(epoch, progress.done)
    learner.model.train()
    steps = progress.steps + len(sampler) // sampler.accumulation
    batches = read(loader, on_damaged)
    unseen: list[Step] = []
    with Progress(steps, f"epoch {epoch}", start=progress.steps, quiet=not world.is_main) as bar:
        for number in range(progress.steps + 1, steps + 1):
            batches_done = progress.done // sampler.together
            rate = learning_rate(epoch + batches_done / (sampler.size // sampler.together))
            step = Step(rate)
            for part, batch in enumerate(islice(batches, sampler.accumulation), start=1):
                samples = batch.samples.to(device, non_blocking=True)
                labels = batch.targets.to(device, non_blocking=True)
                samples, targets = augment(samples, labels, epoch)
                last_part = part == sampler.accumulation
                loss, logits = learner.backward(samples, targets, exchange=last_part)
                step.losses.append(loss)
                step.correct.append((logits.argmax(1) == labels).sum())
                progress.seen += len(labels)
                progress.damaged += len(batch.damaged)
            step.norm = learner.update(rate)
            unseen.append(step)
            progress.done += sampler.step_size

            pause = pauses is not None and pauses.due()
            if pause or number == steps or len(unseen) == STEPS_BETWEEN_LOOKS:
                progress.add(unseen, epoch=epoch, may_overflow=learner.scaler.is_enabled())
                unseen.clear()
                _check_scale(learner, epoch, progress)
                now = time.monotonic()
                progress.seconds, last_look = progress.seconds + now - last_look, now
                bar.show(number, f"loss {progress.loss / progress.batches:.3f}")
            if pause:
                pauses.take(progress)
    _check_weights(learner.model, epoch)
    return progress


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    *,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
    precision: str = "fp32",
    on_damaged: str = "error",
    rates: FiringRates | None = None,
    world: World = ALONE,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Test on every sample, each counted once however many processes share the work.

    Args:
        model: The bare model: processes whose share is a batch shorter must not be waited for.
        loader: From qkformer.data.loaders.evaluation_loader.
        prepare: Samples on the device, as loaded -> input of the model.
        precision: As ComputeConfig has it.
        on_damaged: What becomes of samples that cannot be read: error or skip.
        rates: Gets the firing rates of the first batches.
        between: Called behind every batch, equally often in all processes.

    Returns:
        loss (cross-entropy without label smoothing), acc1 and acc5 in percent; how many samples
        were counted, and how many damaged ones could not be.

    Raises:
        TrainingError: the loss is not a finite number.
        DataError: samples cannot be read.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, top 1, top 5
    seen = damaged = 0
    batches = read(loader, on_damaged)
    steps = loader.batch_sampler.longest
    with Progress(steps, "test", quiet=not world.is_main) as bar:
        for step in range(steps):
            batch = next(batches, None)
            if batch is not None:
                samples = prepare(batch.samples.to(device, non_blocking=True))
                targets = batch.targets.to(device, non_blocking=True)
                with autocast(precision, device):
                    if rates is not None and step < MEASURED_BATCHES:
                        logits = rates.measure(model, samples)
                    else:
                        logits = model(samples)
                loss = nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
                hits = logits.topk(min(5, logits.shape[1])).indices == targets.unsqueeze(1)
                sums += torch.stack([loss, hits[:, 0].sum(), hits.sum()])
                seen += len(targets)
                damaged += len(batch.damaged)
            bar.show(step + 1)
            between()
    counts = torch.tensor([seen, damaged], dtype=torch.float64)
    loss, top1, top5, seen, damaged = world.total(torch.cat([sums.cpu(), counts])).tolist()
    if not loss < float("inf"):
        raise TrainingError(f"the test loss is {loss}")
    return {
        "loss": loss / seen,
        "acc1": 100 * top1 / seen,
        "acc5": 100 * top5 / seen,
        "samples": int(seen),
        "damaged": int(damaged),
    }


def _check_scale(learner: Learner, epoch: int, progress: EpochProgress) -> None:
    scale = learner.scaler.get_scale()
    if learner.scaler.is_enabled() and scale < LEAST_SCALE:
        raise TrainingError(
            f"the fp16 gradient scale fell to {scale:.1e} in epoch {epoch}: {progress.skipped} of "
            f"{progress.steps} steps overflowed and changed nothing; a lower optimizer.lr, "
            "optimizer.clip_grad_norm or compute.precision: bf16 may help",
            {"epoch": epoch, "step": progress.steps, "amp_scale": scale},
        )


def _check_weights(model: nn.Module, epoch: int) -> None:
    # a neuron fed with NaN falls silent, so NaN weights need not show in the loss
    names = not_finite(model)
    if names:
        raise TrainingError(
            f"{names[0]} is no longer finite after epoch {epoch}; the checkpoints are as they were",
            {"epoch": epoch, "not_finite": names},
        )
