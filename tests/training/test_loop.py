"""One pass of training or testing, on a model small enough to check by hand."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from qkformer.data.datasets import DataConfig
from qkformer.data.loaders import evaluation_loader, training_loader
from qkformer.training.loop import TrainingError, evaluate, train_one_epoch

CPU = torch.device("cpu")
CLASSES = 7


class Recorder(nn.Module):
    """A linear model that remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)
        self.seen, self.modes = [], []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        self.modes.append(self.training)
        return self.linear(x.flatten(1))


def dataset(size=22):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 1, 2, 2), dtype=torch.uint8, generator=generator)
    return TensorDataset(images, torch.randint(0, CLASSES, (size,), generator=generator))


def config(batch_size=4):
    return DataConfig(name="digits", image_size=2, batch_size=batch_size)


def prepare(images):
    return images.float() / 255


def train(model, optimizer=None, loss=nn.functional.cross_entropy, epoch=0, rate=lambda _: 0.1):
    return train_one_epoch(
        model,
        training_loader(dataset(), config(), CPU, seed=0),
        optimizer or torch.optim.SGD(model.parameters(), lr=0),
        loss,
        epoch=epoch,
        prepare=prepare,
        learning_rate=rate,
        device=CPU,
    )


def test_an_epoch_is_plain_gradient_descent_over_its_batches():
    torch.manual_seed(0)
    model, expected = Recorder(), Recorder()
    expected.load_state_dict(model.state_dict())
    metrics = train(model, epoch=2)

    loader = training_loader(dataset(), config(), CPU, seed=0)
    loader.sampler.set_epoch(2)
    losses, hits = [], []
    for images, targets in loader:
        logits = expected(prepare(images))
        loss = nn.functional.cross_entropy(logits, targets)
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
        losses.append(loss.item())
        hits += (logits.argmax(1) == targets).tolist()
    torch.testing.assert_close(model.linear.weight, expected.linear.weight)
    assert metrics["train_loss"] == pytest.approx(sum(losses) / len(losses))
    assert metrics["train_acc1"] == pytest.approx(100 * sum(hits) / len(hits))
    assert all(model.modes)


def test_the_learning_rate_follows_the_position_inside_the_epoch():
    positions = []
    model = Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=9)
    metrics = train(model, optimizer, epoch=3, rate=lambda at: positions.append(at) or at / 1000)
    assert positions == pytest.approx([3, 3.2, 3.4, 3.6, 3.8])
    assert metrics["train_lr"] == pytest.approx(3.4 / 1000)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3.8 / 1000)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_training_and_names_the_step(broken):
    steps = []

    def loss(logits, targets):
        steps.append(1)
        factor = broken if len(steps) == 3 else 1
        return factor * nn.functional.cross_entropy(logits, targets)

    with pytest.raises(TrainingError, match=f"loss is {broken} in step 2 of epoch 4"):
        train(Recorder(), loss=loss, epoch=4, rate=lambda _: 0.0)


def test_weights_that_are_no_numbers_stop_training_even_where_the_loss_hides_them():
    model = Recorder()
    model.silenced = nn.Parameter(torch.tensor([math.nan]))
    with pytest.raises(TrainingError, match="silenced is no longer finite after epoch 0"):
        train(model)


@pytest.mark.parametrize("batch_size", [1, 4, 22, 30])
def test_testing_counts_every_image_once_whatever_the_batch_size(batch_size):
    torch.manual_seed(0)
    model, data = Recorder(), dataset()
    loader = evaluation_loader(data, config(batch_size), CPU)
    metrics = evaluate(model, loader, prepare=prepare, device=CPU)
    images, targets = data.tensors
    with torch.no_grad():
        logits = model.linear(prepare(images).flatten(1))
    ranks = (logits > logits.gather(1, targets[:, None])).sum(1)
    assert metrics == {
        "test_loss": pytest.approx(nn.functional.cross_entropy(logits, targets).item()),
        "test_acc1": 100 * (ranks < 1).sum().item() / 22,
        "test_acc5": 100 * (ranks < 5).sum().item() / 22,
    }
    assert not any(model.modes)
    assert model.linear.weight.grad is None


def test_a_model_that_answers_nan_is_not_given_an_accuracy():
    model = Recorder()
    nn.init.constant_(model.linear.weight, math.nan)
    with pytest.raises(TrainingError, match="test loss is nan"):
        evaluate(model, evaluation_loader(dataset(), config(), CPU), prepare=prepare, device=CPU)
