"""Single files as samples of a data set would be: pictures, and recordings of event cameras."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from qkformer.data.events import checked_frames
from qkformer.data.image_transforms import ImageTransform
from qkformer.data.samples import DAMAGE, DAMAGE_OR_BUG
from qkformer.data.source import DataError
from qkformer.text import one_line

EVENT_EXTENSIONS = (".aedat", ".npz", ".npy")


def sample_files(given: list[Path], events: bool) -> list[Path]:
    """The files given, and those in the folders given, in alphabetical order.

    Raises:
        DataError: one is not there, or a folder has none.
    """
    files = []
    for path in given:
        if path.is_dir():
            endings = EVENT_EXTENSIONS if events else IMG_EXTENSIONS
            found = sorted(each for each in path.iterdir() if each.suffix.lower() in endings)
            if not found:
                raise DataError(f"{path}: no files in it that end in {' '.join(endings)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file")
    return files


def read_image(path: Path, transform: ImageTransform, in_chans: int) -> Tensor:
    """A picture -> uint8 [C, S, S]; grey for a model of one channel.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return transform(image.convert("L" if in_chans == 1 else "RGB"))
    except (OSError, *DAMAGE) as error:
        raise DataError(f"{path}: cannot be read as an image ({one_line(error)})") from error


def read_recording(path: Path, T: int, size: int) -> Tensor:
    """A recording -> event counts int16 [T, 2, size, size], all frames of as many events.

    Args:
        path: AEDAT 3.1, as DVS128 Gesture has it; AEDAT 2.0 of a DVS128 on its side, as CIFAR10-DVS
            was recorded; .npz with the arrays t, x, y, p, or with ``frames``; .npy with frames, or
            with an array whose fields are t, x, y, p.

    Raises:
        DataError: it cannot be read, or does not fit.
    """
    # SpikingJelly's data sets import Matplotlib
    from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number as integrate

    try:
        content = _content(path)
        if "frames" in content:
            return checked_frames(content["frames"], T, size)
        for axis in "xy":
            largest = int(content[axis].max())
            if largest >= size:
                raise ValueError(f"{axis} goes up to {largest}, expected less than {size}")
        return checked_frames(integrate(content, "number", T, size, size), T, size)
    except (OSError, *DAMAGE, *DAMAGE_OR_BUG) as error:
        raise DataError(f"{path}: cannot be read as a recording ({one_line(error)})") from error


def _content(path: Path) -> dict[str, np.ndarray]:
    from spikingjelly.datasets.utils import load_aedat_v3

    if path.suffix == ".npz":
        with np.load(path) as file:
            return {"frames": file["frames"]} if "frames" in file else {k: file[k] for k in "txyp"}
    if path.suffix == ".npy":
        array = np.load(path)
        return {k: array[k] for k in "txyp"} if array.dtype.names else {"frames": array}
    with path.open("rb") as file:
        start = file.read(10)
    if start == b"#!AER-DAT3":
        return load_aedat_v3(path)
    if start == b"#!AER-DAT2":
        return _aedat2(path)
    raise ValueError("neither .npz, .npy nor AEDAT 2.0 or 3.1")


def _aedat2(path: Path) -> dict[str, np.ndarray]:
    """Behind lines of header pairs of 32 bits, big-endian: address (y, x, polarity) and time."""
    data = path.read_bytes()
    start = 0
    while data.startswith(b"#", start):
        start = data.index(b"\n", start) + 1
    address, t = np.frombuffer(data, ">u4", offset=start).reshape(-1, 2).astype(np.int64).T
    column, row = address >> 1 & 127, address >> 8 & 127
    return {"t": t, "x": 127 - row, "y": 127 - column, "p": 1 - (address & 1)}
