"""Predictions on single files: those of the model, in words and in JSON; refusals in one line."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import make_model, with_spikes
from data.event_files import SIZE, aedat2, aedat3, expected_frames, random_events
from PIL import Image

from qkformer import released_state_dict
from qkformer.data.inputs import known_inputs
from qkformer.data.recordings import read_recording
from qkformer.predict import main
from qkformer.training.command_line import parse_train

CONFIG = """
epochs: 4
model: {name: %s, T: 3, args: {embed_dim: 16, num_heads: 2}}
data: {name: %s, image_size: 64, batch_size: 2}
optimizer: {lr: 0.005}
schedule: {name: one_cycle}
"""


def trained(folder, name, data, names=None):
    """A checkpoint of a network that fires: FOLDER/best.pth, with FOLDER/config.yml."""
    (folder / "config.yml").write_text(CONFIG % (name, data))
    config = parse_train(folder / "config.yml", [])[0]
    inputs = asdict(known_inputs(data))
    inputs["class_names"] = names or inputs["class_names"]
    sizes = {"num_classes": len(inputs["class_names"]), "in_chans": known_inputs(data).in_chans}
    model = make_model(name, **sizes, **config.model.arguments()).float()
    content = {"model": model.state_dict(), "config": asdict(config), "inputs": inputs}
    torch.save(content, folder / "best.pth")
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A model of images, and a folder of three of them, in which a text lies besides."""
    folder = tmp_path_factory.mktemp("images")
    model = trained(folder, "qkformer_4_384", "cifar10")
    (folder / "pictures").mkdir()
    draws = np.random.default_rng(0)
    for name in ("b.png", "a.png", "c.jpeg"):
        picture = Image.fromarray(draws.integers(0, 256, (40, 50, 3), np.uint8))
        picture.save(folder / "pictures" / name)
    (folder / "pictures/notes.txt").write_text("no picture")
    return folder, model


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A model of events, and one recording in every form."""
    folder = tmp_path_factory.mktemp("events")
    model = trained(folder, "qkformer_2_256", "dvs128-gesture")
    recording = random_events(np.random.default_rng(0), 0, 9000, 1000)
    recording["x"], recording["y"] = 4 * recording["x"], 4 * recording["y"]  # all over the sensor
    (folder / "three.aedat").write_bytes(aedat3(recording))
    (folder / "two.aedat").write_bytes(aedat2(recording))
    np.savez(folder / "events.npz", **recording)
    kinds = [(key, recording[key].dtype) for key in "txyp"]
    fields = np.empty(len(recording["t"]), kinds)
    for key in "txyp":
        fields[key] = recording[key]
    np.save(folder / "events.npy", fields)
    frames = expected_frames(recording, 3)
    np.savez(folder / "frames.npz", frames=frames)
    np.save(folder / "frames.npy", frames)
    return folder, model, frames


def run(folder, *argv):
    main(["--checkpoint", str(folder / "best.pth"), "--device", "cpu", *map(str, argv)])


def answers(capsys):
    return json.loads(capsys.readouterr().out)


def test_images_get_the_models_likeliest_classes(images, capsys):
    folder, model = images
    run(folder, folder / "pictures", folder / "pictures/b.png", "--json")
    found = answers(capsys)
    files = ["a.png", "b.png", "c.jpeg", "b.png"]
    assert [each["file"] for each in found] == [str(folder / "pictures" / file) for file in files]
    inputs, config = known_inputs("cifar10"), parse_train(folder / "config.yml", [])[0].data
    with Image.open(folder / "pictures/b.png") as image:
        x = inputs.prepare(config)(inputs.transform(config)(image)[None])
    logits, _ = with_spikes(model, x)
    expected = logits[0].double().softmax(0).sort(descending=True)
    for each in (found[1], found[3]):
        for said, value, index in zip(each["classes"], *expected, strict=False):
            assert said["probability"] == pytest.approx(value.item(), rel=1e-5)
            assert said == {**said, "index": index, "class": inputs.class_names[index]}
    assert [len(each["classes"]) for each in found] == [5] * 4


def test_lines_for_people(images, capsys):
    folder, _ = images
    run(folder, folder / "pictures/a.png")
    out, err = capsys.readouterr()
    first, *classes = out.splitlines()
    assert first == str(folder / "pictures/a.png") and len(classes) == 5
    shares = [float(line.split("%")[0]) for line in classes]
    assert shares == sorted(shares, reverse=True) and 0 < shares[0] <= 100
    assert {line.split()[-1] for line in classes} <= set(known_inputs("cifar10").class_names)
    assert "the one recorded in" in err


def test_a_published_file_with_its_config_and_imagenets_words(tmp_path, images, capsys):
    model = trained(tmp_path, "qkformer_4_384", "imagenet")
    torch.save({"state_dict": released_state_dict(model)}, tmp_path / "best.pth")
    picture = images[0] / "pictures/a.png"
    run(tmp_path, picture, "--config", tmp_path / "config.yml", "--json")
    (found,) = answers(capsys)
    assert all(each["class"].startswith("n") for each in found["classes"])
    assert all(each["description"] for each in found["classes"])
    with pytest.raises(SystemExit):
        run(tmp_path, picture)
    assert "--config: required" in capsys.readouterr().err


def test_the_files_own_names_are_told(tmp_path, images, capsys):
    trained(tmp_path, "qkformer_4_384", "cifar10", ("left", "right"))
    run(tmp_path, images[0] / "pictures/a.png", "--json")
    (found,) = answers(capsys)
    assert {each["class"] for each in found["classes"]} == {"left", "right"}


def test_a_recording_is_the_same_in_every_form(events, capsys):
    folder, model, frames = events
    files = sorted(folder.glob("*.[an][ep]*"))
    assert len(files) == 6
    for file in files:
        assert np.array_equal(read_recording(file, 3, SIZE), frames)
    run(folder, folder, "--json")
    found = answers(capsys)
    assert [each["file"] for each in found] == list(map(str, files))
    assert all(each["classes"] == found[0]["classes"] for each in found)
    x = torch.from_numpy(frames).float()[None].unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
    logits, _ = with_spikes(model, x.sum((-3, -1)))
    best = found[0]["classes"][0]
    assert best["class"] == known_inputs("dvs128-gesture").class_names[logits.argmax()]
    assert best["probability"] == pytest.approx(logits.double().softmax(1).max().item(), rel=1e-5)


@pytest.mark.slow
def test_overlay_draws_a_picture_of_every_file(images, events, tmp_path):
    folder, _ = images
    run(folder, folder / "pictures", "--overlay", tmp_path / "maps")
    written = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert written == ["a_png.png", "b_png.png", "c_jpeg.png"]
    with Image.open(tmp_path / "maps/a_png.png") as picture:
        assert picture.width > picture.height > 100
    run(events[0], events[0] / "frames.npz", "--overlay", tmp_path / "events")
    assert (tmp_path / "events/frames_npz.png").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "required: FILE"),
        (("none.png",), "none.png: no such file"),
        (("EMPTY",), "no files in it that end in"),
        (("TEXT",), "notes.txt: cannot be read as an image"),
        (("PICTURE", "--device", "gpu"), "--device"),
        (("PICTURE", "--config", "none.yml"), "none.yml"),
        (("PICTURE", "--weights", "ema"), "averaged weights"),
        (("PICTURE", "PICTURE", "--overlay", "OUT"), "2 files are called a.png"),
        (("PICTURE", "--top", "1"), "unrecognized arguments"),
    ],
)
def test_bad_input_gets_one_line(images, argv, message, tmp_path, capsys):
    pictures = images[0] / "pictures"
    places = {"PICTURE": pictures / "a.png", "TEXT": pictures / "notes.txt"}
    places |= {"EMPTY": tmp_path, "OUT": tmp_path / "out"}
    refused(images[0], [places.get(each, each) for each in argv], message, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.save(path, np.zeros((4, 2, SIZE, SIZE), np.int16)), "(3, 2, 128, 128)"),
        (lambda path: np.save(path, np.zeros(1, [("t", "i8")])), "x"),
        (lambda path: path.write_bytes(b"#!AER-DAT2.0\r\n" + b"x" * 9), "cannot be read"),
        (lambda path: path.write_text("text"), "cannot be read"),
        (
            lambda path: path.write_bytes(b"") or np.save(path, wide()),
            "x goes up to 345, expected less than 128",
        ),
    ],
    ids=["other T", "missing fields", "cut off", "text", "other sensor"],
)
def test_other_recordings_are_refused_in_one_line(events, write, message, tmp_path, capsys):
    path = tmp_path / "recording.npy"
    write(path)
    refused(events[0], [path], message, capsys)


def wide():
    events = np.zeros(10, [(key, "i8") for key in "txyp"])
    events["x"][3] = 345
    return events


def refused(folder, argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(folder, *argv)
    out, err = capsys.readouterr()
    *said, error = err.splitlines()
    assert stop.value.code == 2 and error.startswith("error: ") and message in error
    assert not out and len(said) <= 1
