"""One time step per call: the same network as all steps at once, and states that are one's own."""

import pytest
import torch
from conftest import firing, make_model
from families import FAMILIES
from torch import nn

import qkformer

SMALL = dict(embed_dim=16, num_heads=2)
STREAMED = FAMILIES.keys() - {
    "espikeformer_t", "espikeformer_12_512", "transformer_4_384", "stsa_2_256", "resnet19",
    "qcfs_resnet18", "mst_swin_t",
}  # fmt: skip
NEURONS = {
    "if": dict(neuron="if"),
    "plif": dict(neuron="plif"),
    "reset to -0.5": dict(neuron_args={"v_reset": -0.5, "tau": 1.75}),
    "starts at 0.4, soft reset": dict(neuron_args={"v_init": 0.4, "soft_reset": True}),
}


def recording(model, steps, batch=2, size=16):
    return torch.randn(batch, steps, model.in_chans, size, size, dtype=torch.float64)


@torch.no_grad()
def assert_streams(model, frames):
    stream = qkformer.streaming(model)
    states = stream.start(frames[:, 0])
    with firing() as fired:
        for t, frame in enumerate(frames.unbind(1)):
            logits, *states = stream(frame, *states)
            assert torch.equal(logits, model(frames[:, : t + 1]))
    assert sum(fired.values()) > 0.75 * len(fired) > 2


@pytest.mark.parametrize("name", sorted(STREAMED))
def test_every_step_gives_the_logits_of_the_steps_so_far(name):
    model = make_model(name, **FAMILIES[name])
    assert_streams(model, recording(model, 3, size=32))


@pytest.mark.parametrize("options", NEURONS.values(), ids=NEURONS)
def test_whatever_the_neuron(options):
    model = make_model("qkformer_4_384", **SMALL, **options)
    assert_streams(model, recording(model, 4))


def test_folded_for_sixteen_steps():
    model = qkformer.fuse_for_inference(make_model("qkformer_2_256", **SMALL))
    assert_streams(model, recording(model, 16, batch=1))


def test_two_heads():
    options = FAMILIES["metaspikformer_8_384"]
    model = make_model("metaspikformer_8_384", **options, distilled=True)
    assert_streams(model, recording(model, 3, size=32))


def test_converted_activations():
    options = FAMILIES["qcfs_resnet18"]
    model = qkformer.convert(make_model("qcfs_resnet18", **options), T=3, method="qcfs")
    assert_streams(model, recording(model, 3))


@torch.no_grad()
def test_an_image_shown_T_times_gives_the_logits_of_the_image():
    model = make_model("qkformer_4_384", T=3, **SMALL)
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    stream = qkformer.streaming(model)
    states = stream.start(image)
    for _ in range(3):
        logits, *states = stream(image, *states)
    assert torch.equal(logits, model(image))


@torch.no_grad()
def test_samples_of_a_batch_may_begin_at_different_times():
    model = make_model("ms_qkformer_4_384", neuron_args={"v_reset": -0.5}, **SMALL)
    frames = recording(model, 5)
    stream = qkformer.streaming(model)
    start = states = stream.start(frames[:, 0])
    for t, frame in enumerate(frames.unbind(1)):
        if t == 2:
            new = torch.tensor([False, True])
            states = [
                torch.where(new.view(-1, *[1] * (state.ndim - 1)), first, state)
                for first, state in zip(start, states, strict=True)
            ]
        logits, *states = stream(frame, *states)
    assert torch.equal(logits[0], model(frames)[0])
    assert torch.equal(logits[1], model(frames[:, 2:])[1])


def test_states_are_named_and_nothing_is_kept_between_calls():
    model = make_model("qkformer_4_384", **SMALL)
    stream = qkformer.streaming(model)
    frame = recording(model, 1)[:, 0]
    states = stream.start(frame)
    assert stream.names[0] == "stages.0.embed.convs.0.neuron.v" and len(states) == len(stream.names)
    assert states[0].shape == (2, 2, 16, 16) and all(len(state) == 2 for state in states)
    with torch.no_grad():
        first, again = stream(frame, *states), stream(frame, *states)
    assert all(map(torch.equal, first, again)) and not torch.equal(first[1], states[0])
    assert model.stages[0].embed.convs[0].neuron.step_mode == "m"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("qkformer_4_384", SMALL | dict(ssa="original"), "'original', which lets samples see"),
        ("stsa_2_256", FAMILIES["stsa_2_256"], "attends to all time steps before"),
        ("espikeformer_t", FAMILIES["espikeformer_t"], "no neuron of it has a membrane"),
        ("resnet19", FAMILIES["resnet19"], "no neuron of it has a membrane"),
        ("qkformer_4_384", SMALL | dict(num_classes=0, global_pool=""), "no logits to average"),
    ],
)
def test_what_cannot_be_streamed_is_said(name, options, message):
    with pytest.raises(ValueError, match=f"{message}"):
        qkformer.streaming(qkformer.create_model(name, **options).eval())


def test_other_bad_input_is_said():
    model = make_model("qkformer_4_384", **SMALL)
    stream = qkformer.streaming(model)
    frame = recording(model, 1)[:, 0]
    with pytest.raises(ValueError, match=r"expected \d+ states, as start\(frame\) gives them, got"):
        stream(frame, frame)
    with pytest.raises(ValueError, match="does not fit the membrane potential"):
        stream(frame, *stream.start(frame[:1]))
    with pytest.raises(ValueError, match=r"in training mode: call model\.eval"):
        qkformer.streaming(model.train())
    with pytest.raises(TypeError, match="a model of qkformer, got Linear"):
        qkformer.streaming(nn.Linear(2, 2))
    unrolled = qkformer.create_model("espikeformer_t", **FAMILIES["espikeformer_t"])
    with pytest.raises(ValueError, match="takes the mean over all time steps first"):
        qkformer.streaming(qkformer.convert(unrolled, method="sfa"))
