"""A model as one file for other runtimes: ONNX, and PyTorch's own .pt2."""

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from qkformer.export.subject import Exported, compare, need, prepare
from qkformer.files import replacing


@torch.no_grad()
def export_onnx(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    image_size: int | tuple[int, int],
    frames: int | None = None,
    dynamic_batch: bool = True,
    check: bool = True,
) -> Exported:
    """Write an ONNX file, in float32 and with BatchNorm folded.

    Its input is "images" [B, C, H, W] or "frames" [B, T, C, H, W], its output "logits"
    [B, num_classes]. A streaming model's are "frame", the states by their names, "logits" and the
    states again, as "next." and the name; those that do not start from 0 are in the file's metadata
    as "start".

    Args:
        model: one of this package's models in evaluation mode, folded or not, or
            ``qkformer.streaming(model)``.
        path: of the file; an older one is replaced once the new one is complete and checked.
        image_size: H and W in pixels, or both; they are constants of the file, as T is.
        frames: T for a model of event frames; None for one of images, which it repeats by itself.
        dynamic_batch: leave B free; else it is 1.
        check: run the file in onnxruntime, on random samples in batches of other sizes than the
            one exported with, and compare.

    Returns:
        What was written, and how it compares.

    Raises:
        ExportError: a package is missing, the model or an argument does not fit, or the check
            fails; nothing is written.
        FileError: the file cannot be written.
    """
    need("onnx", "onnxscript", *(("onnxruntime",) if check else ()))
    subject = prepare(model, image_size, frames, dynamic_batch)
    with _quietly():
        program = torch.onnx.export(
            subject.model,
            subject.inputs(),
            dynamo=True,
            dynamic_shapes=subject.dynamic_shapes(),
            input_names=subject.input_names,
            output_names=subject.output_names,
            verbose=False,
        )
    for node in program.model.graph:  # leave the module's path, not this machine's
        for key in node.metadata_props.keys() - {"pkg.torch.onnx.name_scopes"}:
            del node.metadata_props[key]
    program.model.metadata_props["start"] = json.dumps(subject.start())
    content = program.model_proto.SerializeToString()
    agreement = None
    if check:
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            values = {k: v.numpy() for k, v in zip(subject.input_names, inputs, strict=True)}
            return tuple(map(torch.from_numpy, session.run(subject.output_names, values)))

        agreement = compare(subject, f"onnxruntime {onnxruntime.__version__}", run)
    with replacing(path) as file:
        file.write(content)
    graph = f"ONNX, opset {program.model.opset_imports['']}"
    return Exported(Path(path), graph, len(program.model.graph), agreement)


@torch.no_grad()
def export_torch(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    image_size: int | tuple[int, int],
    frames: int | None = None,
    dynamic_batch: bool = True,
    check: bool = True,
) -> Exported:
    """Write what ``torch.export`` makes of a model, a .pt2 file, in float32 with BatchNorm folded.

    ``torch.export.load(path).module()`` runs it without this package.

    Arguments, result and errors: those of :func:`export_onnx`; the check loads the file.
    """
    subject = prepare(model, image_size, frames, dynamic_batch)
    shapes = subject.dynamic_shapes()
    program = torch.export.export(
        subject.model, subject.inputs(), dynamic_shapes=shapes, strict=False
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    content = io.BytesIO()
    torch.export.save(program, content)
    agreement = None
    if check:
        content.seek(0)
        loaded = torch.export.load(content).module()

        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            outputs = loaded(*inputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        agreement = compare(subject, "the file", run)
    with replacing(path) as file:
        file.write(content.getbuffer())
    calls = sum(node.op == "call_function" for node in program.graph.nodes)
    return Exported(Path(path), f"torch.export of {torch.__version__}", calls, agreement)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter tells those who develop it; the check finds what is wrong."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
