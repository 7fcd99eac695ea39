"""The commands of the export, by format.

All take test.py's command line (--config, --checkpoint, --output, dotted keys, ...) and options of
their own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from qkformer.analysis.source import Source, opened, told
from qkformer.commands import Parser
from qkformer.data.source import EventData
from qkformer.export.graphs import export_onnx, export_torch
from qkformer.export.neuromorphic import export_nir
from qkformer.export.streaming import streaming
from qkformer.export.subject import Exported, ExportError
from qkformer.export.vectors import export_trace
from qkformer.inference import quantize_int8
from qkformer.models import SpikingNetwork
from qkformer.training.config import ConfigError
from qkformer.training.evaluate import check_tested
from qkformer.training.model import load_model

EPILOG = (
    "All other options are test.py's: --config FILE --checkpoint PATH --output FILE --KEY VALUE"
)


def onnx(argv: Sequence[str]) -> None:
    """ONNX, checked in onnxruntime; with --streaming one time step per call."""
    _graph(onnx, export_onnx, "model.onnx", argv)


def torch(argv: Sequence[str]) -> None:
    """torch.export's .pt2, for PyTorch without this package, AOTInductor, ExecuTorch."""
    _graph(torch, export_torch, "model.pt2", argv)


def _graph(
    command: Callable, export: Callable[..., Exported], name: str, argv: Sequence[str]
) -> None:
    made = _parser(command)
    made.add_argument("--streaming", action="store_true", help="one time step per call")
    made.add_argument("--fixed_batch", action="store_true", help="a batch of 1 instead of any")
    made.add_argument("--no_check", action="store_true", help="do not run what was exported")
    options, rest = made.parse_known_args(argv)
    model, shape, path = _loaded(rest, name)
    *frames, size = shape
    try:
        if options.streaming:
            model, frames = streaming(model), []
        exported = export(
            model,
            path,
            image_size=size,
            frames=frames[0] if frames else None,
            dynamic_batch=not options.fixed_batch,
            check=not options.no_check,
        )
    except ValueError as error:
        raise ConfigError(f"{command.__name__}: {error}") from error
    print(exported)


def nir(argv: Sequence[str]) -> None:
    """NIR for neuromorphic hardware, of models that it can hold, checked in SpikingJelly."""
    made = _parser(nir)
    made.add_argument("--no_check", action="store_true", help="do not run what was exported")
    options, rest = made.parse_known_args(argv)
    model, (*frames, size), path = _loaded(rest, "model.nir")
    steps = frames[0] if frames else None
    try:
        print(export_nir(model, path, image_size=size, frames=steps, check=not options.no_check))
    except ExportError as error:
        raise ConfigError(f"nir: {error}") from error


def trace(argv: Sequence[str]) -> None:
    """One sample of the test set through every layer, .npz; with --quantize int8 in integers."""
    made = _parser(trace)
    made.add_argument("--sample", type=int, default=0, help="which of the test set")
    options, rest = made.parse_known_args(argv)
    with opened(rest) as source:
        path = _file(source.output, "trace.npz")
        try:
            description = export_trace(source.model, _sample(source, options.sample), path)
        except ExportError as error:
            raise ConfigError(f"trace: {error}") from error
    print(f"{path}: {len(description['layers'])} layers, class {description['class']}")


def _sample(source: Source, number: int) -> Tensor:
    """That of the test set, as a batch of one."""
    ahead = number
    for x, _ in source.batches():
        if 0 <= ahead < len(x):
            return x[ahead : ahead + 1]
        ahead -= len(x)
    raise ConfigError(f"--sample {number}: the test set has {number - ahead}, from 0 on")


def _parser(command: Callable) -> Parser:
    made = Parser(f"qkformer export {command.__name__}", description=command.__doc__,
                  allow_abbrev=False, epilog=EPILOG)  # fmt: skip
    return made


def _loaded(argv: Sequence[str], name: str) -> tuple[SpikingNetwork, tuple[int, ...], Path]:
    """The model, height and width of its input behind the number of frames, and where to write."""
    config, options = told(argv)
    if options.device == "cuda":
        raise ConfigError("--device cuda: exporting is done on the CPU")
    print(options.source, *check_tested([config], options), sep="\n")
    model, _ = load_model(config, options.checkpoint, use_ema=options.weights == "ema")
    if not isinstance(model, SpikingNetwork):
        raise ConfigError(f"{config.model.name} is timm's own: only this package's are exported")
    if options.quantize:
        model = quantize_int8(model)
    frames = (config.model.T,) if model.in_chans == EventData.in_chans else ()
    return model, (*frames, config.data.image_size), _file(options.output, name)


def _file(output: Path, name: str) -> Path:
    path = output / name if output.is_dir() else output
    if not path.parent.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {path.parent}")
    return path
