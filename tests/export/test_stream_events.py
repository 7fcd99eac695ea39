"""The example that streams a recording prints what the model says of the frames so far."""

import importlib.util
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from conftest import firing, make_model
from data.event_files import aedat3, concatenated, random_events

from qkformer.data.event_formats import GESTURES
from qkformer.training.command_line import parse_train

CONFIG = """
epochs: 4
model: {name: qkformer_2_256, T: 3, args: {embed_dim: 16, num_heads: 2}}
data: {name: dvs128-gesture, image_size: 32, batch_size: 4}
optimizer: {lr: 0.005}
schedule: {name: one_cycle}
"""
EACH = 60
EXAMPLE = Path(__file__).parents[2] / "examples" / "stream_events.py"


def test_every_line_is_of_the_frames_so_far(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("stream_events", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    (tmp_path / "config.yml").write_text(CONFIG)
    trained = parse_train(tmp_path / "config.yml", [])[0]
    arguments = trained.model.arguments()
    model = make_model("qkformer_2_256", num_classes=11, **arguments).float()
    torch.save({"model": model.state_dict(), "config": asdict(trained)}, tmp_path / "last.pth")
    rng = np.random.default_rng(0)
    parts = [random_events(rng, 3, 150, 0), random_events(rng, 9, 200, 20_000)]
    events = concatenated(parts)
    (tmp_path / "a.aedat").write_bytes(aedat3(events))

    example.main(["--recording", str(tmp_path / "a.aedat"), "--events", str(EACH),
                  "--checkpoint", str(tmp_path / "last.pth")])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(events["t"]) // EACH > 4
    counts = torch.zeros(len(lines), 2, 32, 32)
    for i in range(len(lines) * EACH):
        counts[i // EACH, events["p"][i], events["y"][i] // 4, events["x"][i] // 4] += 1
    with torch.no_grad(), firing() as fired:
        for i, line in enumerate(lines):
            first = i - i % 3
            share, label = model(counts[None, first : i + 1]).softmax(1)[0].max(0)
            name = GESTURES[label]
            when = (events["t"][(i + 1) * EACH - 1] - events["t"][0]) / 1e6
            *said, percent, _ = line.split()
            assert said == f"{when:.3f} s step {i % 3 + 1}/3 {name}".split()
            assert abs(int(percent) - 100 * share) < 1
    assert sum(fired.values()) > 0.5 * len(fired)
