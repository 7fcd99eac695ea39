"""``python -m qkformer.predict --checkpoint PATH FILE ...``: classes of images or recordings."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkformer.commands import ERRORS, Parser
from qkformer.data.inputs import descriptions
from qkformer.data.recordings import read_image, read_recording, sample_files
from qkformer.data.source import DataError
from qkformer.training.command_line import parse_trained
from qkformer.training.config import ConfigError
from qkformer.training.distributed import World
from qkformer.training.environment import choose_device, make_folder
from qkformer.training.evaluate import check_tested
from qkformer.training.trained import Trained, load_trained

MOST = 5  # classes of a file that are told


@torch.no_grad()
def predict(trained: Trained, files: Sequence[Path]) -> Iterator[tuple[list[Path], Tensor, Tensor]]:
    """Batch after batch: files, input of the model, and probabilities [B, classes] on the CPU.

    Args:
        trained: with its model on the device to compute on.
        files: images, or recordings for a model of event frames.

    Raises:
        DataError: a file cannot be read.
    """
    config, inputs = trained.config, trained.inputs
    device = next(trained.model.parameters()).device
    transform, prepare = inputs.transform(config.data), inputs.prepare(config.data).to(device)

    def sample(file: Path) -> Tensor:
        if transform is None:
            return read_recording(file, trained.model.T, inputs.stored)
        return read_image(file, transform, inputs.in_chans)

    size = config.data.evaluation_batch_size
    for start in range(0, len(files), size):
        some = list(files[start : start + size])
        x = prepare(torch.stack([sample(file) for file in some]).to(device))
        yield some, x, trained.model(x).double().softmax(1).cpu()


def best_classes(trained: Trained, probabilities: Tensor) -> list[dict[str, Any]]:
    """The likeliest classes of one sample, from its probabilities [classes]."""
    names = trained.inputs.class_names
    values, indices = probabilities.topk(min(MOST, len(names)))
    best = [(names[i], i, p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]
    words = descriptions(tuple(name for name, _, _ in best))
    return [
        {"class": name, "index": i, "probability": p}
        | ({"description": words[name]} if name in words else {})
        for name, i, p in best
    ]


def overlay(trained: Trained, files: Sequence[Path], x: Tensor, folder: Path) -> None:
    """What the model looks at: of x.jpg FOLDER/x_jpg.png."""
    from qkformer.analysis import figures, maps
    from qkformer.analysis.overlay import attention_maps, pictures

    drawn = attention_maps(trained.model, x, maps.attentions(trained.model, x))
    size = tuple(x.shape[-2:])
    arrays = {name: maps.enlarged(values, size).numpy() for name, values in drawn.items()}
    shown = pictures(x)
    for i, file in enumerate(files):
        own = {name: values[i : i + 1] for name, values in arrays.items()}
        figure = figures.overlays(shown[i : i + 1], own, [file.name])
        figures.draw(figure, folder / file.name.replace(".", "_"))


# --------------------------------------------------------------------------- the command line


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Raises:
        SystemExit: with one line and status 2 where something given is wrong.
    """
    try:
        _run(_parser().parse_args(argv))
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _parser() -> Parser:
    made = Parser(
        "python -m qkformer.predict",
        description="The classes of images, or of recordings of an event camera.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="image; recording (.aedat, .npz, .npy) for a model of event frames; folder of such",
    )
    add("--checkpoint", required=True, help="file, or folder of python -m qkformer.export hf")
    add("--config", help="YAML file, for a checkpoint that records none")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--weights", default="trained", help="trained, or ema for the averaged ones")
    add("--json", action="store_true", help="one JSON list instead of lines")
    add("--overlay", type=Path, metavar="DIR", help="folder for a picture of what is looked at, "
        "for every file")  # fmt: skip
    return made


def _run(options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in ("checkpoint", "config", "device", "weights")}
    config, told = parse_trained([f"--{k}={value}" for k, value in given.items() if value])
    _say(told.source, *check_tested([config], told))
    trained = load_trained(config, told.checkpoint, use_ema=told.weights == "ema")
    trained.model.to(choose_device(told.device, World()))
    files = sample_files(options.files, events=trained.inputs.stored is not None)
    if getattr(trained.model, "ssa", None) == "original":  # which an ANN has not
        batch = config.data.evaluation_batch_size
        _say(f"ssa original: a file's classes depend on the others of its batch of {batch}")
    if options.overlay:
        _check_overlay(options.overlay, files)
    everything = []
    for some, x, probabilities in predict(trained, files):
        for file, each in zip(some, probabilities, strict=True):
            found = best_classes(trained, each)
            everything.append({"file": str(file), "classes": found})
            if not options.json:
                print(file, *map(_line, found), sep="\n")
        if options.overlay:
            overlay(trained, some, x, options.overlay)
    if options.json:
        print(json.dumps(everything, indent=1))


def _check_overlay(folder: Path, files: Sequence[Path]) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("--overlay: pip install 'qkformer[analysis]'") from error
    name, times = Counter(file.name for file in files).most_common(1)[0]
    if times > 1:
        raise DataError(f"--overlay: {times} files are called {name}, whose pictures would be one")
    make_folder(folder)


def _line(found: dict[str, Any]) -> str:
    words = f" ({found['description']})" if "description" in found else ""
    return f"{100 * found['probability']:8.2f} %  {found['class']}{words}"


def _say(*lines: str) -> None:
    print(*filter(None, lines), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
