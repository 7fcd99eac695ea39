"""What a trained model makes of a recording of an event camera, while the events arrive.

    python examples/stream_events.py --recording user01_led.aedat --checkpoint runs/dvs/best.pth

Reads AEDAT 3.1, as DVS128 Gesture is published. Whenever ``--events`` more have arrived they are a
frame, as frames are in training, and the model takes a step: its logits are the mean over the steps
so far. After T steps it starts anew. All other options are test.py's; no data set is needed.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from spikingjelly.datasets.utils import load_aedat_v3
from torch import Tensor

import qkformer
from qkformer.analysis.source import told
from qkformer.data.event_preparation import SIZE
from qkformer.training.trained import load_trained


def frames(events: dict[str, np.ndarray], each: int) -> Iterator[tuple[int, Tensor]]:
    """When a frame is full (microseconds), and its counts [2, SIZE, SIZE]; events left over wait.

    Args:
        events: t, x, y and p of every event.
        each: events of a frame.
    """
    for start in range(0, len(events["t"]) - each + 1, each):
        now = slice(start, start + each)
        frame = np.zeros((2, SIZE, SIZE), dtype=np.int16)
        np.add.at(frame, tuple(events[key][now].astype(int) for key in "pyx"), 1)
        yield int(events["t"][start + each - 1]), torch.from_numpy(frame)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for every time step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--recording", type=Path, required=True, help="AEDAT 3.1")
    parser.add_argument("--events", type=int, default=20_000, help="of a frame")
    options, rest = parser.parse_known_args(argv)
    config, tested = told(rest)
    trained = load_trained(config, tested.checkpoint, use_ema=tested.weights == "ema")
    model, prepare = trained.model, trained.inputs.prepare(config.data)
    stream = qkformer.streaming(model)

    events = load_aedat_v3(options.recording)
    for i, (now, frame) in enumerate(frames(events, options.events)):
        x = prepare(frame[None, None])[:, 0]
        if i % model.T == 0:
            states = stream.start(x)
        logits, *states = stream(x, *states)
        share, label = logits.softmax(1)[0].max(0)
        seconds = (now - int(events["t"][0])) / 1e6
        step, name = i % model.T + 1, trained.inputs.class_names[label]
        print(f"{seconds:8.3f} s  step {step}/{model.T}  {name}  {100 * share:.0f} %")


if __name__ == "__main__":
    main()
