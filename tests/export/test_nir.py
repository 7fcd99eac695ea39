"""NIR: what it can hold comes back from an importer as the same network; the rest is named."""

import pytest
import torch
from conftest import make_model
from families import FAMILIES

import qkformer
from qkformer.export import ExportError, export_nir, neuromorphic
from qkformer.export.nir_layers import DT

nir = pytest.importorskip("nir")
pytest.importorskip("nirtorch")
ONE_STAGE = dict(embed_dim=16, num_heads=2, depths=(1,), T=3)
HELD = {
    "qkformer for NIR": ("qkformer_nir_4_384", dict(embed_dim=16, num_heads=2, T=3), 16),
    "PLIF": ("qkformer_4_384", ONE_STAGE | dict(mixers=["token_qk"], neuron="plif"), 8),
    "membrane shortcuts, IF": (
        "ms_qkformer_4_384", ONE_STAGE | dict(mixers=["token_qk"], neuron="if"), (8, 12),
    ),
    "pre-activation, reset to -0.5": (
        "qkformer_4_384",
        ONE_STAGE | dict(mixers=["none"], residual="pa", neuron_args={"v_reset": -0.5, "tau": 1.5}),
        8,
    ),
    "pools behind neurons": (
        "spikformer_4_384", dict(embed_dim=16, num_heads=2, depth=1, mixer="token_qk", T=3), 16,
    ),
    "sew-resnet": ("sew_resnet34", FAMILIES["sew_resnet34"], 32),
    "resnet-19": ("resnet19_snn", FAMILIES["resnet19_snn"], 16),
}  # fmt: skip


@pytest.mark.parametrize("case", HELD)
def test_the_file_read_by_an_importer_is_the_same_network(case, tmp_path):
    name, options, size = HELD[case]
    model = make_model(name, **options)
    written = export_nir(model, tmp_path / "a.nir", image_size=size, check=False)
    assert written.agreement is None and f"NIR {nir.version}" in str(written)
    subject = neuromorphic.prepare(model, size)
    run = neuromorphic._runner(nir.read(tmp_path / "a.nir"), subject)
    agreement = neuromorphic.compare(subject, "nirtorch", run)
    assert agreement.agree == agreement.samples and agreement.difference < 1e-3
    assert agreement.rate > 0.02 and not agreement.silent


def test_event_frames_and_the_check_of_the_function(tmp_path):
    options = dict(embed_dim=16, num_heads=2, in_chans=2)
    model = make_model("qkformer_nir_4_384", **options)
    written = export_nir(model, tmp_path / "a.nir", image_size=16, frames=4)
    assert written.agreement.difference < 1e-3 and written.agreement.rate > 0.02


def test_spikingjellys_own_importer_reads_what_needs_no_threshold(tmp_path):
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    model = make_model("resnet19_snn", **FAMILIES["resnet19_snn"]).float()
    export_nir(model, tmp_path / "a.nir", image_size=16, check=False)
    network = import_from_nir(tmp_path / "a.nir", dt=DT)
    x, state, total = torch.randn(3, 3, 16, 16), None, 0
    with torch.no_grad():
        for _ in range(model.T):
            logits, state = network(x, state)
            total = total + logits
        torch.testing.assert_close(total / model.T, model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "size", "message"),
    [
        ("qkformer_4_384", ONE_STAGE | dict(mixers=["ssa"]), 8,
         r"stages\.0\.blocks\.0\.mixer\.branch: SpikingSelfAttention multiplies matrices"),
        ("qkformer_4_384", ONE_STAGE | dict(mixers=["channel_qk"]), 8, "mask over all tokens"),
        ("qkformer_4_384", ONE_STAGE | dict(mixers=["dwconv3"]), 8, "a convolution with groups"),
        ("qkformer_2_256", dict(embed_dim=16, num_heads=2), 16,
         r"stages\.0\.embed\.convs\.1: NIR has no max pool of currents.*qkformer_nir_4_384"),
        ("sdt_2_512", FAMILIES["sdt_2_512"], 16, r"convs\.3: NIR has no max pool of currents"),
        ("transformer_4_384", FAMILIES["transformer_4_384"], 16, "ReLU has no counterpart in NIR"),
        ("sew_resnet101", FAMILIES["sew_resnet101"], 32, "of SEW's connections, ADD alone"),
        ("metaspikformer_8_384", FAMILIES["metaspikformer_8_384"] | dict(distilled=True), 32,
         "NIR needs a network with one linear head"),
        ("qkformer_nir_4_384", ONE_STAGE | dict(mixers=["token_qk"],
         neuron_args={"soft_reset": True}), 8, "neither a soft reset nor another start"),
        ("qkformer_nir_4_384", dict(embed_dim=16, num_heads=2), 6, "multiples of 4"),
    ],
)  # fmt: skip
def test_what_it_cannot_hold_is_named_with_the_reason(name, options, size, message, tmp_path):
    model = qkformer.create_model(name, **options).eval()
    with pytest.raises(ExportError, match=message):
        export_nir(model, tmp_path / "a.nir", image_size=size)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_said(monkeypatch, tmp_path):
    model = qkformer.create_model("qkformer_nir_4_384", embed_dim=16, num_heads=2).eval()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs nir and nirtorch: pip install 'qkformer\[expor"):
        export_nir(model, tmp_path / "a.nir", image_size=16)
