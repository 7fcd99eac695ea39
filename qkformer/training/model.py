"""The configured model for the configured data."""

from torch import nn

import qkformer
from qkformer.data.registry import Data
from qkformer.data.source import one_line
from qkformer.training.config import Config, ConfigError


def create_model(config: Config, data: Data) -> nn.Module:
    """The model that `config.model` names, for the classes, channels and size of the data.

    Raises:
        ConfigError: the model does not take these arguments, or this input size.
    """
    try:
        model = qkformer.create_model(
            config.model.name,
            num_classes=data.num_classes,
            in_chans=data.in_chans,
            **config.model.arguments(),
        )
    except (TypeError, ValueError, RuntimeError) as error:  # the last: a backend that cannot run
        raise ConfigError(f"model: {one_line(error)}") from error
    if config.data.image_size % model.downsampling:
        raise ConfigError(
            f"data.image_size: must be a multiple of {model.downsampling} for "
            f"{config.model.name}, got {config.data.image_size}"
        )
    return model
