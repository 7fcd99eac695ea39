"""Networks without spikes, ours and timm's, through the same commands as all others."""

import json

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training.few import register, write_config

import qkformer
from qkformer.analysis.__main__ import main as analyse
from qkformer.analysis.measure import measure
from qkformer.training import main
from qkformer.training.command_line import parse_train
from qkformer.training.config import ConfigError
from qkformer.training.model import check_model

CONFIG = """
epochs: 2
model: {name: test_vit}
data: {name: few, image_size: 8, batch_size: 4, crop_pct: 1.0}
optimizer: {lr: 0.001}
schedule: {name: one_cycle}
log: {energy: true}
"""
KINDS = {
    "test_vit": {"patch_size": 4},  # built for one size of image: the data's
    "test_resnet": {},
    "resnet19": {"stem_dim": 8, "dims": [8, 16, 16], "depths": [1, 1, 1], "hidden": 8},
}


@pytest.fixture
def configured(monkeypatch, tmp_path):
    """The file of a small run; and options that make it of this network."""
    register(monkeypatch)
    file = write_config(tmp_path, CONFIG)
    return lambda name: (file, [f"--model.name={name}", f"--model.args={json.dumps(KINDS[name])}"])


def macs(name):
    size = {"img_size": 8} if timm.get_pretrained_cfg_value(name, "fixed_input_size") else {}
    model = qkformer.create_model(name, num_classes=3, in_chans=1, **size, **KINDS[name])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.eval()(torch.zeros(1, 1, 8, 8))
    return counter.get_total_flops() // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_it_is_trained_tested_and_measured(name, configured, tmp_path, capsys):
    (file, options), run = configured(name), tmp_path / "run"
    main.train(file, [*options, f"--output={run}", "--device=cpu"])
    first, last = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert last["train_loss"] < first["train_loss"] < 5
    assert last["firing_rate"] == {}
    main.test(file, [f"--checkpoint={run}/last.pth", "--device=cpu"])
    results = json.loads((run / "results.json").read_text())
    assert results["acc1"] == pytest.approx(last["test_acc1"])
    assert (results["model"], results["neuron"], results["ssa"]) == (name, "", None)
    energy = json.loads((run / "energy.json").read_text())["ann"]
    assert energy["macs"] == macs(name)
    assert energy["mJ"] == pytest.approx(4.6e-9 * macs(name))
    capsys.readouterr()
    analyse(["energy", f"--checkpoint={run}/last.pth", f"--output={tmp_path}", "--device=cpu"])
    assert f"{energy['mJ']:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["neuron=lif", "T=4", "ssa=fixed", "backend=auto"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_what_only_a_spiking_network_has_is_refused(name, option, configured):
    file, options = configured(name)
    assert check_model(parse_train(file, options)[0]) == []
    key = option.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^model: .*'{key}'; null for what a network does not"):
        check_model(parse_train(file, [*options, f"--model.{option}"])[0])


def test_a_checkpoint_of_another_ann_is_refused(configured, tmp_path):
    file, options = configured("test_vit")
    model = qkformer.create_model("test_vit", num_classes=7, in_chans=5, img_size=8, patch_size=4)
    record = {"model": {"name": "test_vit.r160_in1k", "args": KINDS["test_vit"]}}
    torch.save({"model": model.state_dict(), "config": record}, tmp_path / "a.pth")
    config, _ = parse_train(file, options)
    assert check_model(config, tmp_path / "a.pth") == []  # classes and channels are the data's
    dropping = parse_train(file, [*options, "--model.args.drop_rate=0.5"])[0]
    assert check_model(dropping, tmp_path / "a.pth") == []  # acts in training only
    other = parse_train(file, [*options, "--model.args.act_layer=relu"])[0]
    with pytest.raises(ConfigError, match=r"another model \(model\.args\.act_layer"):
        check_model(other, tmp_path / "a.pth")


def test_windows_beside_the_samples_are_one_time_step():
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(2, 1), num_heads=(2, 4)
    )
    images = torch.randn(2, 3, 56, 56)
    whole, alone = measure(swin, [images]), measure(swin, [images[:1]])
    assert whole.executed_macs == alone.executed_macs == whole.ann()["macs"]
    assert [layer.macs for layer in whole.layers] == [layer.macs for layer in alone.layers]
