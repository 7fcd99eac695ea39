"""QKFormer and its relatives: spiking vision transformers for research and training."""

from qkformer import peers
from qkformer.checkpoint import CheckpointError, load_checkpoint, released_state_dict
from qkformer.convert import convert
from qkformer.export import export_onnx, streaming
from qkformer.inference import fuse_for_inference, quantize_int8
from qkformer.models import create_model, list_models

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "__version__",
    "convert",
    "create_model",
    "export_onnx",
    "fuse_for_inference",
    "list_models",
    "load_checkpoint",
    "peers",
    "quantize_int8",
    "released_state_dict",
    "streaming",
]
