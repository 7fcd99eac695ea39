"""What is minimised, and of which logits the accuracy is, under TET and with a teacher."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import firing, make_fire
from families import FAMILIES
from torch import nn

import qkformer
from qkformer.data.registry import load_data
from qkformer.loss import tet_loss
from qkformer.training import model as training_model
from qkformer.training.command_line import parse_train
from qkformer.training.config import ConfigError
from qkformer.training.distributed import World
from qkformer.training.learner import Learner
from qkformer.training.model import check_loss, create_teacher

CPU = torch.device("cpu")
DEMO = Path(__file__).resolve().parents[2] / "configs/demo_digits.yml"
IMAGES, LABELS = torch.randn(4, 1, 32, 32), torch.arange(4) % 3


def configured(*options, **loss):
    config = parse_train(DEMO, list(options))[0]
    return replace(config, loss=replace(config.loss, label_smoothing=0.0, **loss))


def small(name, **options):
    return qkformer.create_model(name, num_classes=3, in_chans=1, **FAMILIES[name] | options)


@pytest.mark.parametrize("name", ["sdt_2_512", "resnet19_snn", "qkformer_4_384"])
@pytest.mark.parametrize("mixed", [False, True], ids=["labels", "mixtures"])
def test_every_time_step_is_to_be_right_and_their_mean_is_what_counts(name, mixed):
    model = make_fire(small(name, T=3)).double()
    config = configured(tet_lambda=0.25, tet_target=2.0)
    learner = Learner(model, config, CPU, World())
    images, targets = IMAGES.double(), LABELS
    if mixed:
        targets = F.one_hot(LABELS, 3).double().mul(0.7).add(0.1)
    with firing() as fired:
        loss, logits = learner.backward(images, targets, exchange=True)
    assert fired and all(fired.values())
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    steps = model(images, per_step=True)
    expected = tet_loss(steps, targets, nn.CrossEntropyLoss(), weight=0.25, level=2.0)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(logits, model(images).detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad)
    assert len(steps) == 3 and gradient["head.weight"].any()


class Third(nn.Module):
    """A teacher to whom everything is of class 2."""

    def forward(self, samples):
        assert not self.training
        return torch.tensor([0.0, 0.0, 1.0]).expand(len(samples), 3)


def test_the_second_head_learns_what_the_teacher_says():
    model = make_fire(small("metaspikformer_8_384", distilled=True))
    config = configured(teacher="test_vit", distillation=0.25)
    learner = Learner(model.train(), config, CPU, World(), Third().eval())
    loss, logits = learner.backward(IMAGES, LABELS, exchange=True)
    first, second = model(IMAGES)
    expected = F.cross_entropy(first, LABELS) * 0.75 + 0.25 * F.cross_entropy(
        second, torch.full((4,), 2)
    )
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(logits, ((first + second) / 2).detach())
    assert model.head.weight.grad.any() and model.head_dist.weight.grad.any()
    torch.testing.assert_close(model.eval()(IMAGES).shape, logits.shape)  # one, in testing


def test_a_teacher_is_a_model_of_timms_for_the_same_data_with_weights_of_its_own(tmp_path):
    saved = qkformer.create_model("test_vit", num_classes=10, in_chans=1, img_size=16)
    torch.save(saved.state_dict(), tmp_path / "vit.pth")
    config = configured(
        "--data.image_size=16", teacher="test_vit", teacher_weights=str(tmp_path / "vit.pth")
    )
    teacher = create_teacher(config, load_data(config.data, config.augmentation))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(teacher(images), saved.eval()(images))


def offline(**_):
    raise FileNotFoundError("nothing in the cache")


@pytest.mark.parametrize(
    ("fetch", "message"),
    [
        (lambda **_: qkformer.create_model("test_vit", in_chans=1), "knows 1000 classes, the data"),
        (offline, r"cannot fetch test_vit \(nothing in the cache\); give its file as"),
    ],
    ids=["other classes", "no network"],
)
def test_a_teacher_that_knows_nothing_of_the_classes_is_refused(monkeypatch, fetch, message):
    config = configured("--data.image_size=16", teacher="test_vit")
    monkeypatch.setattr(training_model, "_create", lambda config, **options: fetch(**options))
    with pytest.raises(ConfigError, match=f"^loss.teacher: .*{message}"):
        create_teacher(config, load_data(config.data, config.augmentation))


ANN = [f"--model.{key}=null" for key in ("T", "neuron", "ssa", "backend")]
ANN += ["--model.args={}", "--model.name=test_resnet", "--model.mlp_ratio=null"]
ANN += ["--model.drop_path_rate=null"]


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ({"tet_lambda": 0.1}, ANN, "loss.tet_lambda: test_resnet has no time steps"),
        ({"teacher": "test_vit"}, [], "loss.teacher: qkformer_4_384 has no second head"),
        ({"teacher": "test_vit"}, ANN, "loss.teacher: test_resnet has no second head"),
    ],
)
def test_what_a_model_cannot_do_is_refused(loss, options, message):
    check_loss(configured(*options))
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_loss(configured(*options, **loss))
