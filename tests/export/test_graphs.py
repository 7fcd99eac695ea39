"""ONNX and .pt2: loaded by their runtimes, on other batches, they give what the model gives."""

import io
import json
import shutil

import pytest
import torch
from conftest import make_model
from families import FAMILIES
from torch import nn

import qkformer
from qkformer.export import Exported, ExportError, export_onnx, export_torch, streaming, subject
from qkformer.neurons import reference

SMALL = dict(embed_dim=16, num_heads=2, depths=(1,), mixers=("ssa",), T=2)
STEPS = 3


@pytest.fixture(scope="module")
def model():
    """In float32, as deployed; its neurons fire."""
    return make_model("qkformer_4_384", **SMALL).float()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """Whether it takes whole samples or steps -> what was written, by format."""
    folder = tmp_path_factory.mktemp("exported")
    written = {}
    for kind, source in (("whole", model), ("steps", streaming(model))):
        for name, export in (("onnx", export_onnx), ("pt2", export_torch)):
            path = folder / f"{kind}.{name}"
            written[kind, name] = export(source, path, image_size=8)
    return written


def runner(exported: Exported):
    """The file as a function of tensors, with nothing of this package in it."""
    if exported.path.suffix == ".pt2":
        return torch.export.load(exported.path).module()
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported.path)
    names = [each.name for each in session.get_inputs()]

    def run(*inputs):
        outputs = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        outputs = tuple(map(torch.from_numpy, outputs))
        return outputs if len(outputs) > 1 else outputs[0]

    return run


def assert_agree(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "pt2"])
@torch.no_grad()
def test_the_file_gives_the_models_logits_for_any_batch(name, model, files):
    run = runner(files["whole", name])
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        assert_agree(run(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "pt2"])
@torch.no_grad()
def test_a_streaming_file_gives_the_logits_of_all_steps(name, model, files):
    run = runner(files["steps", name])
    for batch in (1, 4):
        frames = torch.randn(batch, STEPS, 3, 8, 8)
        states = streaming(model).start(frames[:, 0])
        for frame in frames.unbind(1):
            logits, *states = run(frame, *states)
        assert_agree(logits, model(frames))


@pytest.mark.slow
def test_what_was_written_says_how_large_it_is_and_how_it_compares(files):
    whole, steps = files["whole", "onnx"], files["steps", "onnx"]
    assert "opset" in str(whole) and f"{whole.nodes} nodes" in str(whole)
    for exported in files.values():
        agreement = exported.agreement
        assert agreement.agree == agreement.samples == 4 and agreement.difference < 1e-4
        assert 0.01 < agreement.rate < 1 and agreement.neurons == 10
    assert steps.nodes < whole.nodes  # of one step, not two
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(whole.path).graph
    kinds = {node.op_type for node in graph.node}
    assert "Conv" in kinds and not kinds & {"BatchNormalization", "ScatterND", "ScatterElements"}
    here = str(subject.__file__).rpartition("/qkformer/")[0]
    assert here.encode() not in whole.path.read_bytes()
    assert here.encode() not in files["whole", "pt2"].path.read_bytes()


@pytest.mark.slow
@torch.no_grad()
def test_states_that_do_not_start_from_zero_are_in_the_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    options = SMALL | dict(depths=(1,), mixers=("none",), neuron_args={"v_reset": -0.5})
    stream = streaming(make_model("qkformer_4_384", **options))
    export_onnx(stream, tmp_path / "a.onnx", image_size=8, dynamic_batch=False)
    loaded = onnx.load(tmp_path / "a.onnx")
    (start,) = [json.loads(p.value) for p in loaded.metadata_props if p.key == "start"]
    assert start == {name: -0.5 for name in stream.names if name.endswith(".v")}
    assert [each.name for each in loaded.graph.input] == ["frame", *stream.names]
    shape = loaded.graph.input[0].type.tensor_type.shape.dim
    assert [each.dim_value for each in shape] == [1, 3, 8, 8]


# Families whose layers the others do not have.
EXPORTED = {
    "qkformer_4_384": SMALL | dict(mixers=("token_qk",), T=1),
    "metaspikformer_8_384": FAMILIES["metaspikformer_8_384"] | dict(depths=(0, 0, 0, 1, 0), T=1),
    "espikeformer_12_512": FAMILIES["espikeformer_12_512"] | dict(depths=(1, 0, 0, 0)),
    "qcfs_resnet18": FAMILIES["qcfs_resnet18"],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXPORTED)
def test_families_go_through_torch_export_and_jit_trace(name, tmp_path):
    model = make_model(name, **EXPORTED[name]).float()
    written = export_torch(model, tmp_path / "a.pt2", image_size=16)
    assert written.agreement.difference < 1e-4
    traced_agrees(model, torch.randn(2, 3, 16, 16))


@torch.no_grad()
def traced_agrees(model, x):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, (x,)), file)
    file.seek(0)
    x = torch.randn(5, *x.shape[1:])
    torch.testing.assert_close(torch.jit.load(file)(x), model(x))


@pytest.mark.filterwarnings("ignore")  # that tracing is deprecated, and what it takes for constants
@pytest.mark.parametrize("neuron", ["lif", "plif"])
def test_jit_trace_gives_the_same_for_any_batch(neuron):
    model = make_model("qkformer_4_384", **SMALL, neuron=neuron).float()
    traced_agrees(qkformer.fuse_for_inference(model), torch.randn(2, 3, 8, 8))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++")
@torch.no_grad()
def test_aotinductor_compiles_what_was_exported(model, files, tmp_path):
    program = torch.export.load(files["steps", "pt2"].path)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "a.pt2"))
    run = torch._inductor.aoti_load_package(path)
    frame = torch.randn(4, 3, 8, 8)
    stream = streaming(model)
    logits, *states = run(frame, *stream.start(frame))
    expected, *expected_states = stream(frame, *stream.start(frame))
    assert_agree(logits, expected)
    assert len(states) == len(expected_states)


def test_only_what_is_exported_runs_in_plain_operations(model, monkeypatch):
    called = []
    plain = reference.spike_sequence

    def spy(*args, **options):
        called.append(1)
        return plain(*args, **options)

    monkeypatch.setattr(reference, "spike_sequence", spy)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        assert not called
        monkeypatch.setattr(reference, "exporting", lambda: True)
        assert torch.equal(model(x), expected) and called


@pytest.mark.parametrize("export", [export_onnx, export_torch])
def test_bad_input_is_said_before_anything_is_written(export, model, tmp_path, monkeypatch):
    if export is export_onnx:
        pytest.importorskip("onnxruntime")
    path = tmp_path / "a"

    events = make_model("qkformer_2_256", embed_dim=16, num_heads=2)

    def refused(message, source=model, **options):
        with pytest.raises(ExportError, match=message):
            export(source, path, **{"image_size": 8, **options})

    refused(r"in training mode: call model\.eval\(\) first", make_model("qkformer_4_384").train())
    refused("multiples of 16 for QKFormer, got 24", events, image_size=24, frames=2)
    refused("multiples of 1", image_size=(8, 8, 8))
    refused("a model of qkformer or qkformer.streaming", nn.Linear(2, 2))
    refused("frames must be a number of at least 1", frames=0)
    refused("none for streaming", streaming(model), frames=3)
    monkeypatch.setattr(subject.importlib.util, "find_spec", lambda name: None)
    if export is export_onnx:
        refused(r"onnx and onnxscript and onnxruntime: pip install 'qkformer\[export\]'")
    assert not path.exists()


def test_a_check_that_fails_or_shows_nothing_is_an_error(model):
    whole = subject.prepare(model, 8)
    assert subject.compare(whole, "itself", lambda inputs: (model(*inputs),)).agree == 4
    with pytest.raises(ExportError, match="another one: mirror against PyTorch on 4 random"):
        subject.compare(whole, "mirror", lambda inputs: (-model(*inputs),))
    silent = make_model("qkformer_4_384", **SMALL, neuron_args={"v_threshold": 1e6}).float()
    with pytest.raises(ExportError, match="no neuron fires"):
        subject.compare(subject.prepare(silent, 8), "itself", lambda inputs: (silent(*inputs),))
