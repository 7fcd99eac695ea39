"""Images per second of ImageNet's input pipeline with the published recipe, stage by stage.

On JPEG files made here, of ImageNet's usual size (500 x 375 pixels, about 110 kB), from the disk's
cache. One process and one thread each, but for the loaders with workers.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from benchmarks import report
from benchmarks.measure import Contender, Step, compare
from benchmarks.options import parser, set_up
from benchmarks.results_file import save
from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.loaders import read, training_loader
from qkformer.data.registry import load_data
from qkformer.data.source import DataConfig

CPU = torch.device("cpu")
SIZE = (500, 375)  # width, height
RECIPE = AugmentationConfig(  # configs/imagenet_qkformer_10_384.yml
    crop_scale=(0.08, 1.0),
    crop_ratio=(3 / 4, 4 / 3),
    hflip=0.5,
    auto_augment="rand-m9-mstd0.5-inc1",
    erasing_prob=0.25,
    erasing_mode="pixel",
)


def main(arguments: list[str] | None = None) -> None:
    """The command line; returns when the results are saved and printed."""
    made = parser(__doc__.splitlines()[0], repeats=5)
    made.add_argument("--images", type=int, default=64, help="JPEG files")
    made.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = sys.argv[1:] if arguments is None else arguments
    options = made.parse_args(arguments)
    device = set_up(options)
    torch.set_num_threads(1)  # as in a worker of a DataLoader
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder), options.images)
        kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
        rows = compare(
            contenders(Path(folder), files, options.workers, device),
            device,
            repeats=options.repeats,
            items=len(files),
            memory=False,
        )
    label = f"{len(files)} JPEG files of {SIZE[0]} x {SIZE[1]} pixels, {kilobytes:.0f} kB each"
    save(options.results, "loader", label, device, arguments, {"rows": rows})
    print(f"\n{label}\n\n{report.loader(rows)}", flush=True)


def contenders(
    root: Path, files: list[Path], workers: list[int], device: torch.device
) -> list[Contender]:
    """Decoding alone, with what the recipe adds to it, and the loaders."""
    config = DataConfig(name="imagenet", root=str(root), image_size=224, batch_size=len(files))
    no_policy = replace(RECIPE, auto_augment=None)
    made = [
        Contender("decode: Pillow", partial(_over, files, decode_pillow)),
        Contender("decode: torchvision.io", partial(_over, files, decode_torchvision)),
        Contender("decode at 1/2: Pillow's draft mode", partial(_over, files, decode_draft)),
        Contender("decode, random crop, flip", partial(_samples, config, no_policy)),
        Contender("decode, whole recipe", partial(_samples, config, RECIPE)),
    ]
    batched = replace(config, batch_size=max(1, len(files) // 8))
    made += [
        Contender(f"loader, {count} workers", partial(_loader, replace(batched, workers=count)))
        for count in workers
    ]
    return [*made, Contender("on the device: normalise, erase", partial(_augment, config, device))]


def decode_pillow(file: Path) -> Image.Image:
    return Image.open(file).convert("RGB")


def decode_torchvision(file: Path) -> torch.Tensor:
    return decode_jpeg(read_file(str(file)), ImageReadMode.RGB)


def decode_draft(file: Path) -> Image.Image:
    """libjpeg computes half the resolution: a quarter of the inverse transforms."""
    image = Image.open(file)
    image.draft("RGB", (image.width // 2, image.height // 2))
    return image.convert("RGB")


def write_images(root: Path, count: int) -> list[Path]:
    """train/ and val/ with one class each; returns the training files.

    Noise whose amplitude falls with its frequency, as in photographs; the quality is what makes
    the files as large as ImageNet's.
    """
    rng = np.random.default_rng(0)
    files = []
    for part, images in (("train", count), ("val", 1)):
        folder = root / part / "n00000001"
        folder.mkdir(parents=True)
        for i in range(images):
            files.append(folder / f"{i}.JPEG")
            _photograph(rng).save(files[-1], "JPEG", quality=95)
    return files[:count]


def _photograph(rng: np.random.Generator) -> Image.Image:
    width, height = SIZE
    total = np.full((height, width, 3), 128.0)
    for cells in (4, 8, 16, 32, 64, 128, 256, 500):
        grid = rng.integers(0, 256, (cells * height // width + 1, cells, 3), dtype=np.uint8)
        octave = np.asarray(Image.fromarray(grid).resize(SIZE, Image.Resampling.BICUBIC), float)
        total += (octave - 128) * 1.4 / cells**0.45
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def _over(files: list[Path], decode: Callable[[Path], object]) -> Step:
    def step() -> None:
        for file in files:
            decode(file)

    return step


def _samples(config: DataConfig, augmentation: AugmentationConfig) -> Step:
    train = load_data(config, augmentation).train

    def step() -> None:
        for index in range(len(train)):
            train[index, index]

    return step


def _loader(config: DataConfig) -> Step:
    loader = training_loader(load_data(config, RECIPE).train, config, CPU, seed=0)

    def step() -> None:
        for _batch in read(loader, config.on_damaged):
            pass

    return step


def _augment(config: DataConfig, device: torch.device) -> Step:
    augment = load_data(config, RECIPE).augment.to(device)
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = torch.zeros(config.batch_size, dtype=torch.long, device=device)
    return lambda: augment(images.to(device), labels, epoch=0)


if __name__ == "__main__":
    main()
