"""What can be said of a model and a checkpoint before there are data."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from families import FAMILIES

import qkformer
from qkformer.checkpoint import CheckpointError, check_checkpoint
from qkformer.training.command_line import parse_train
from qkformer.training.config import ComputeConfig, ConfigError
from qkformer.training.model import check_model, prepare_model

DEMO = Path(__file__).resolve().parents[2] / "configs/demo_digits.yml"


def configured(*options):
    small = ["--model.args", "{embed_dim: 16, num_heads: 2}", "--model.T", "2"]
    return parse_train(DEMO, [*small, *options])[0]


@pytest.fixture
def trained(tmp_path):
    """Writes a file as a run with these options would, on data of 7 classes and 5 channels."""

    def write(*options):
        config = configured(*options)
        model = qkformer.create_model(
            config.model.name, num_classes=7, in_chans=5, **config.model.arguments()
        )
        path = tmp_path / "last.pth"
        torch.save({"model": model.state_dict(), "config": asdict(config)}, path)
        return path

    return write


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("choice", ["auto", True, False])
def test_auto_is_channels_last_on_gpus(choice, device):
    class Placed:
        def to(self, device, memory_format):
            return device, memory_format

    device = torch.device(device)
    last = (device.type == "cuda") if choice == "auto" else choice
    layout = torch.channels_last if last else torch.preserve_format
    compute = ComputeConfig(channels_last=choice)
    assert prepare_model(Placed(), compute, device) == (device, layout)


ARGS = "--model.args.{}".format


@pytest.mark.parametrize(
    "same",
    [
        [],
        ["--model.neuron", "null"],  # the default, given or not
        [ARGS("attn_scale"), "0.125"],
        [ARGS("depths"), "[1, 1, 2]"],
        [ARGS("drop_rate"), "0.3"],  # these act in training only
        ["--model.drop_path_rate", "0.5"],
        ["--model.backend", "torch"],
        ["--data.image_size", "16", "--epochs", "3"],
    ],
)
def test_the_model_of_the_training_is_accepted_whatever_the_data(trained, same):
    assert check_model(configured(*same), trained()) == []
    assert check_model(configured(), trained(*same)) == []


@pytest.mark.parametrize(
    ("option", "value", "before"),
    [
        ("--model.neuron", "if", "lif"),
        (ARGS("attn_scale"), "0.5", "None"),
        (ARGS("residual"), "pa", "None"),
        (ARGS("num_heads"), "4", "2"),
    ],
)
def test_what_leaves_no_trace_in_the_weights_is_compared(trained, option, value, before):
    key = option.removeprefix("--")
    with pytest.raises(ConfigError, match=rf"last\.pth was trained .*{key}: {before} -> {value}\)"):
        check_model(configured(option, value), trained())
    with pytest.raises(ConfigError, match=rf"last\.pth was trained .*{key}: {value} -> {before}\)"):
        check_model(configured(), trained(option, value))


def test_a_neuron_that_is_not_there_is_another_model(trained, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(qkformer.neurons.NEURONS, "mine", qkformer.neurons.LIF)
        path = trained("--model.neuron", "mine")
    with pytest.raises(ConfigError, match=r"model\.neuron: mine -> lif"):
        check_model(configured(), path)


def test_time_steps_and_attention_may_change_but_not_silently(trained):
    path, config = trained("--model.ssa", "original", "--model.T", "3"), configured()
    lines = check_model(config, path)
    assert lines == [
        f"model.T: 2, but {path} was trained with 3",
        f"model.ssa: fixed, but {path} was trained with original",
    ]
    assert check_model(config, path, on_purpose=("ssa",)) == lines[:1]
    assert check_model(config, path, on_purpose=("ssa", "T")) == []


def test_files_that_record_nothing_are_checked_by_their_weights_alone(trained, tmp_path):
    content = torch.load(trained("--model.neuron", "if"))
    for record in ({}, {"config": {}}, {"config": {"model": "?"}}, {"config": None}):
        torch.save({"model": content["model"]} | record, tmp_path / "bare.pth")
        assert check_model(configured(), tmp_path / "bare.pth") == []


@pytest.mark.slow
def test_what_cannot_be_is_refused_without_data(trained, tmp_path):
    path = trained()
    with pytest.raises(ConfigError, match="takes no argument 'foo'"):
        check_model(configured(ARGS("foo"), "1"))
    with pytest.raises(ConfigError, match=r"data\.image_size: must be a multiple of"):
        check_model(configured("--data.image_size", "7"))
    with pytest.raises(CheckpointError, match=r"does not fit the model in \d+ keys"):
        check_model(configured(ARGS("embed_dim"), "32"), path)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        check_model(configured(), path, use_ema=True)
    with pytest.raises(CheckpointError, match="is of qkformer_4_384, the model is ms_"):
        check_model(configured("--model.name", "ms_qkformer_4_384"), path)
    path.write_bytes(path.read_bytes()[:999])
    with pytest.raises(CheckpointError, match="truncated"):
        check_model(configured(), path)


@pytest.mark.parametrize("name", FAMILIES)
def test_classes_and_channels_are_all_that_data_decide(name, tmp_path):
    with torch.device("meta"):
        model = qkformer.create_model(name, **FAMILIES[name])
    other = qkformer.create_model(name, num_classes=7, in_chans=5, **FAMILIES[name])
    torch.save(other.state_dict(), tmp_path / "a.pth")
    assert check_checkpoint(model, tmp_path / "a.pth") == {}
    cut = {key: value[:1] if value.ndim else value for key, value in other.state_dict().items()}
    torch.save(cut, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        check_checkpoint(model, tmp_path / "a.pth")
