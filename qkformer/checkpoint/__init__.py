"""Checkpoints: atomic writing, reading without running code, published names."""

from qkformer.checkpoint.fit import fitting_models
from qkformer.checkpoint.io import CheckpointError, file_md5, read_checkpoint, save_checkpoint
from qkformer.checkpoint.load import LoadReport, check_checkpoint, load_checkpoint
from qkformer.checkpoint.released import NoPublishedNames, released_state_dict

__all__ = [
    "CheckpointError",
    "LoadReport",
    "NoPublishedNames",
    "check_checkpoint",
    "file_md5",
    "fitting_models",
    "load_checkpoint",
    "read_checkpoint",
    "released_state_dict",
    "save_checkpoint",
]
