"""QKFormer and its relatives: spiking vision transformers for research and training."""

from qkformer.models import create_model, list_models

__version__ = "0.1.0"

__all__ = ["__version__", "create_model", "list_models"]
