"""One pass of training, one pass of testing."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from qkformer.training.log import Progress

STEPS_BETWEEN_CHECKS = 10  # reading the loss makes a GPU wait, so not every step
NO_CHECKPOINT = "this epoch leaves no checkpoint, those of earlier ones are as they were"


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one line."""


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    *,
    epoch: int,
    prepare: Callable[[Tensor], Tensor],
    learning_rate: Callable[[float], float],
    device: torch.device,
) -> dict[str, float]:
    """Train on every batch of the loader once.

    Args:
        loader: Yields images [B, C, H, W] (uint8) and class indices [B].
        epoch: Index of this epoch, from 0.
        prepare: uint8 images on the device -> augmented, normalised images.
        learning_rate: Epochs behind us (a fraction inside an epoch) -> learning rate.

    Returns:
        train_lr (mean over the steps), train_loss, and train_acc1 in percent: of the training
        images as augmented, each with the weights of its own step; images_per_second.

    Raises:
        TrainingError: the loss or a weight is no longer a finite number.
    """
    model.train()
    loader.sampler.set_epoch(epoch)
    rates: list[float] = []
    losses = torch.zeros(len(loader), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.long, device=device)
    seen = 0
    start = time.monotonic()
    with Progress(len(loader), f"epoch {epoch}") as progress:
        for step, (images, targets) in enumerate(loader):
            rates.append(learning_rate(epoch + step / len(loader)))
            for group in optimizer.param_groups:
                group["lr"] = rates[-1]
            images = prepare(images.to(device, non_blocking=True))
            targets = targets.to(device, non_blocking=True)

            logits = model(images)
            loss = loss_function(logits, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

            losses[step] = loss.detach()
            correct += (logits.argmax(1) == targets).sum()
            seen += len(targets)
            if step % STEPS_BETWEEN_CHECKS == 0 or step + 1 == len(loader):
                _check_losses(losses[: step + 1], epoch, rates)
                progress.show(step + 1, f"loss {losses[: step + 1].mean().item():.3f}")
    _check_weights(model, epoch)
    seconds = time.monotonic() - start
    return {
        "train_lr": sum(rates) / len(rates),
        "train_loss": losses.mean().item(),
        "train_acc1": 100 * correct.item() / seen,
        "images_per_second": seen / seconds,
    }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    *,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
) -> dict[str, float]:
    """Test on every image of the loader, each counted once.

    Returns:
        test_loss (cross-entropy without label smoothing), test_acc1 and test_acc5 in percent.

    Raises:
        TrainingError: the loss is not a finite number.
    """
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    top1 = torch.zeros((), dtype=torch.long, device=device)
    top5 = torch.zeros((), dtype=torch.long, device=device)
    seen = 0
    with Progress(len(loader), "test") as progress:
        for step, (images, targets) in enumerate(loader):
            images = prepare(images.to(device, non_blocking=True))
            targets = targets.to(device, non_blocking=True)
            logits = model(images)
            loss += nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
            hits = logits.topk(min(5, logits.shape[1])).indices == targets.unsqueeze(1)
            top1 += hits[:, 0].sum()
            top5 += hits.sum()
            seen += len(targets)
            progress.show(step + 1)
    if not loss.isfinite():
        raise TrainingError(f"the test loss is {loss.item()}")
    return {
        "test_loss": loss.item() / seen,
        "test_acc1": 100 * top1.item() / seen,
        "test_acc5": 100 * top5.item() / seen,
    }


def _check_losses(losses: Tensor, epoch: int, rates: list[float]) -> None:
    broken = (~losses.isfinite()).nonzero().flatten().tolist()
    if broken:
        step = broken[0]
        raise TrainingError(
            f"the loss is {losses[step].item()} in step {step} of epoch {epoch} "
            f"(learning rate {rates[step]:.3g}); {NO_CHECKPOINT}"
        )


def _check_weights(model: nn.Module, epoch: int) -> None:
    # a neuron fed with NaN falls silent, so NaN weights need not show in the loss
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise TrainingError(f"{name} is no longer finite after epoch {epoch}; {NO_CHECKPOINT}")
