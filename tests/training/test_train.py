"""One pass of training or testing, on models small enough to check by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from qkformer.data.loaders import evaluation_loader, training_loader
from qkformer.data.samples import Samples
from qkformer.data.source import DataConfig, DataError
from qkformer.training.checkpointing import RunState
from qkformer.training.config import Config, OptimizerConfig
from qkformer.training.distributed import World
from qkformer.training.evaluate import evaluate
from qkformer.training.learner import Learner
from qkformer.training.metrics import EpochMetrics, TrainingError
from qkformer.training.schedule import ScheduleConfig
from qkformer.training.train import Run, train_one_epoch

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


def data(size=22):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 1, 2, 2), dtype=torch.uint8, generator=generator)
    return TensorDataset(images, torch.randint(0, CLASSES, (size,), generator=generator))


def section(batch_size=4):
    return DataConfig(name="digits", image_size=2, batch_size=batch_size)


def prepare(images):
    return images.double() / 255


def loader(batch_size=4, size=22, **options):
    return training_loader(Samples(data(size)), section(batch_size), CPU, seed=0, **options)


def learner(model=None, *, sgd=True, **optimizer):
    """A float64 learner; with plain gradient descent its steps can be checked by hand."""
    torch.manual_seed(0)
    config = Config(
        epochs=1,
        model={"name": "qkformer_4_384"},
        data=section(),
        optimizer=OptimizerConfig(lr=0.1, **optimizer),
        schedule=ScheduleConfig("one_cycle"),
    )
    made = Learner((model or Recorder()).double(), config, CPU, World())
    if sgd:
        made.optimizer = torch.optim.SGD(made.model.parameters(), lr=0)
    return made


def augment(images, labels, epoch):
    return prepare(images), labels


def train(
    learner,
    batches=None,
    epoch=0,
    rate=lambda _: 0.1,
    *,
    augment=augment,
    progress=None,
    checkpoints=None,
    on_damaged="error",
):
    data = SimpleNamespace(augment=augment)
    config = SimpleNamespace(data=replace(section(), on_damaged=on_damaged))
    state = RunState(progress=progress)
    run = Run(config, World(), data, batches or loader(), {}, learner, rate, state, checkpoints)
    train_one_epoch(run, epoch)
    return state.progress


def metrics(progress):
    return progress.total(World())


def test_an_epoch_is_plain_gradient_descent_over_its_batches():
    one, expected = learner(), learner().model
    progress = train(one, epoch=2)

    batches = loader()
    batches.batch_sampler.set_position(2)
    losses, hits, norms = [], [], []
    for images, targets, _ in batches:
        logits = expected(prepare(images))
        loss = nn.functional.cross_entropy(logits, targets)
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        norms.append(math.sqrt(sum((g**2).sum() for g in gradients)))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
        losses.append(loss.item())
        hits += (logits.argmax(1) == targets).tolist()
    torch.testing.assert_close(one.model.linear.weight, expected.linear.weight)
    assert metrics(progress)["train_loss"] == pytest.approx(sum(losses) / len(losses))
    assert metrics(progress)["train_acc1"] == pytest.approx(100 * sum(hits) / len(hits))
    assert metrics(progress)["gradient_norm"] == pytest.approx(sum(norms) / len(norms))
    assert (progress.done, progress.steps, progress.batches, progress.seen) == (20, 5, 5, 20)
    assert all(one.model.modes)


@pytest.mark.parametrize("accumulation", [2, 5])
def test_accumulated_batches_have_the_gradient_of_one_large_batch(accumulation):
    one = learner(accumulation_steps=accumulation)
    train(one, loader(4, 40, accumulation=accumulation))
    other = learner()
    train(other, loader(4 * accumulation, 40))
    assert len(one.model.seen) == accumulation * len(other.model.seen)
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=1e-12, atol=0)


def test_the_learning_rate_follows_the_position_inside_the_epoch():
    positions = []
    one = learner()
    progress = train(one, epoch=3, rate=lambda at: positions.append(at) or at / 1000)
    assert positions == pytest.approx([3, 3.2, 3.4, 3.6, 3.8])
    assert metrics(progress)["train_lr"] == pytest.approx(3.4 / 1000)
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(3.8 / 1000)


def test_with_accumulation_it_is_set_once_a_step_and_counts_batches():
    positions = []
    one = learner(accumulation_steps=2)
    train(one, loader(accumulation=2), rate=lambda at: positions.append(at) or 0.1)
    assert positions == pytest.approx([0, 0.4])  # of the epoch's five batches, one is left out


def test_clipping_bounds_the_gradient_and_reports_it_unclipped():
    free, clipped = learner(), learner(clip_grad_norm=1e-3)
    start = free.model.linear.weight.detach().clone()
    norm = metrics(train(free, loader(20)))["gradient_norm"]
    assert metrics(train(clipped, loader(20)))["gradient_norm"] == pytest.approx(norm)
    moved = [one.model.linear.weight - start for one in (free, clipped)]
    torch.testing.assert_close(moved[1], moved[0] * 1e-3 / norm, rtol=1e-3, atol=1e-9)


def test_averaged_weights_are_the_running_mean_of_the_weights():
    one = learner(ema_decay=0.75)
    mean = one.model.linear.weight.detach().clone()
    history = []
    update = one.update

    def recording():
        norm = update()
        history.append(one.model.linear.weight.detach().clone())
        return norm

    one.update = recording
    train(one)
    for weight in history:
        mean = 0.75 * mean + 0.25 * weight
    torch.testing.assert_close(one.ema.module.linear.weight, mean)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    one = learner(sgd=False)
    one.model.float()
    one.precision = "bf16"
    dtypes = []
    one.model.linear.register_forward_hook(lambda *call: dtypes.append(call[-1].dtype))
    progress = train(one, augment=lambda x, y, _: (x.float() / 255, y), rate=lambda _: 0.01)
    assert set(dtypes) == {torch.bfloat16}
    assert one.model.linear.weight.dtype == torch.float32
    assert math.isfinite(metrics(progress)["train_loss"])


def test_augmentation_gets_samples_labels_and_epoch_and_may_give_soft_targets():
    calls = []

    def mix(samples, labels, epoch):
        calls.append((samples.dtype, labels.dtype, epoch))
        soft = torch.full((len(labels), CLASSES), 1 / CLASSES, dtype=torch.float64)
        return prepare(samples) * 0, soft

    one = learner()
    progress = train(one, epoch=6, augment=mix, rate=lambda _: 0.0)
    assert calls == [(torch.uint8, torch.int64, 6)] * 5
    logits = one.model.linear.bias.log_softmax(0)
    assert metrics(progress)["train_loss"] == pytest.approx(-logits.mean().item())


class Broken(Recorder):
    """Gives something that is not finite from its third batch on."""

    def __init__(self, value, in_gradient=False):
        super().__init__()
        self.value, self.in_gradient = value, in_gradient

    def forward(self, x):
        logits = super().forward(x)
        if len(self.seen) < 3:
            return logits
        if self.in_gradient:
            logits.register_hook(lambda gradient: gradient * self.value)
            return logits
        return logits * self.value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_training_and_names_the_step(value):
    with pytest.raises(TrainingError, match=r"loss is nan in step 2 of epoch 4") as failure:
        train(learner(Broken(value)), epoch=4)
    record = failure.value.record
    assert (record["epoch"], record["step"], record["learning_rate"]) == (4, 2, 0.1)


def test_a_gradient_that_is_no_number_stops_training_although_the_loss_is_fine():
    with pytest.raises(TrainingError, match="gradient is nan in step 2 of epoch 0"):
        train(learner(Broken(math.nan, in_gradient=True)), rate=lambda _: 0.0)


def test_a_scaler_may_leave_out_steps_but_not_all_of_them():
    one = learner(Broken(math.inf, in_gradient=True))
    one.scaler = torch.amp.GradScaler("cpu")
    progress = train(one)
    assert metrics(progress)["skipped_steps"] == 3
    assert one.model.linear.weight.isfinite().all()
    assert math.isfinite(metrics(progress)["gradient_norm"])
    with pytest.raises(TrainingError, match=r"gradient scale fell to .* steps overflowed"):
        for epoch in range(1, 99):
            train(one, epoch=epoch)


def test_weights_that_are_no_numbers_stop_training_even_where_the_loss_hides_them():
    one = learner()
    one.model.silenced = nn.Parameter(torch.tensor([math.nan]))
    with pytest.raises(TrainingError, match="silenced is no longer finite after epoch 0"):
        train(one)


class StopAfter:
    """Checkpoints that stop behind a given step."""

    def __init__(self, steps):
        self.left = steps

    def due(self):
        self.left -= 1
        return self.left == 0

    def save_within(self):
        raise InterruptedError


@pytest.mark.parametrize("stop_after", [1, 3, 5])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_epoch_stopped_and_gone_on_with_equals_one_that_was_not(stop_after, accumulation):
    def batches():
        return loader(2, accumulation=accumulation)

    whole = learner(sgd=False, accumulation_steps=accumulation)
    expected = metrics(train(whole, batches(), epoch=1))
    one, progress = learner(sgd=False, accumulation_steps=accumulation), EpochMetrics()
    stop = StopAfter(stop_after)
    with pytest.raises(InterruptedError):
        train(one, batches(), epoch=1, progress=progress, checkpoints=stop)
    assert progress.steps == stop_after
    found = metrics(train(one, batches(), epoch=1, progress=progress))
    assert torch.equal(one.model.linear.weight, whole.model.linear.weight)
    for name in expected.keys() - {"images_per_second", "data_wait"}:
        assert found[name] == expected[name]


def test_batch_norm_of_accumulated_batches_is_that_of_each():
    def model():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)
        )

    one = learner(model(), accumulation_steps=2)
    train(one, loader(4, 8, accumulation=2))
    expected = model().double()
    batches = loader(4, 8, accumulation=2)
    batches.batch_sampler.set_position(0)
    for images, targets, _ in batches:
        (nn.functional.cross_entropy(expected(prepare(images)), targets) / 2).backward()
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    torch.testing.assert_close(one.model.state_dict(), expected.state_dict())


# ------------------------------------------------------------------------------------- testing


@pytest.mark.parametrize("batch_size", [1, 4, 22, 30])
def test_testing_counts_every_image_once_whatever_the_batch_size(batch_size):
    model = learner().model
    batches = evaluation_loader(Samples(data()), section(batch_size), CPU)
    tested = evaluate(model, batches, prepare=prepare, device=CPU)
    images, targets = data().tensors
    with torch.no_grad():
        logits = model.linear(prepare(images).flatten(1))
    ranks = (logits > logits.gather(1, targets[:, None])).sum(1)
    assert tested.pop("images_per_second") > 0
    assert tested == {
        "loss": pytest.approx(nn.functional.cross_entropy(logits, targets).item()),
        "acc1": 100 * (ranks < 1).sum().item() / 22,
        "acc5": 100 * (ranks < 5).sum().item() / 22,
        "samples": 22,
        "damaged": 0,
    }
    assert not any(model.modes)
    assert model.linear.weight.grad is None


def test_a_model_that_answers_nan_is_not_given_an_accuracy():
    model = learner().model
    nn.init.constant_(model.linear.weight, math.nan)
    batches = evaluation_loader(Samples(data()), section(), CPU)
    with pytest.raises(TrainingError, match="test loss is nan"):
        evaluate(model, batches, prepare=prepare, device=CPU)


class PartlyBroken(TensorDataset):
    """Its samples 3 and 9 cannot be read."""

    def __getitem__(self, index):
        if index in (3, 9):
            raise OSError("cut off")
        return super().__getitem__(index)


def test_damaged_samples_are_counted_in_training_and_testing():
    broken = Samples(PartlyBroken(*data(20).tensors))
    one = learner()
    batches = training_loader(broken, section(), CPU, seed=0)
    progress = train(one, batches, on_damaged="skip")
    assert (progress.seen, metrics(progress)["damaged_samples"], progress.done) == (18, 2, 20)
    tested = evaluate(
        one.model,
        evaluation_loader(broken, section(), CPU),
        prepare=prepare,
        device=CPU,
        on_damaged="skip",
    )
    assert (tested["samples"], tested["damaged"]) == (18, 2)
    with pytest.raises(DataError, match="cut off"):
        train(one, batches)
