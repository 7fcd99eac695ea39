"""Out of the training run: a model for other runtimes, for event streams, and for hardware."""

from qkformer.export.graphs import export_onnx, export_torch
from qkformer.export.neuromorphic import export_nir
from qkformer.export.streaming import Streaming, streaming
from qkformer.export.subject import Agreement, Exported, ExportError
from qkformer.export.vectors import export_trace

__all__ = [
    "Agreement",
    "ExportError",
    "Exported",
    "Streaming",
    "export_nir",
    "export_onnx",
    "export_torch",
    "export_trace",
    "streaming",
]
