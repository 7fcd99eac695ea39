"""The configured model for the configured data, and what of it can be said before there are any."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qkformer
from qkformer.checkpoint.load import LoadReport, check_checkpoint, load_checkpoint, sizes_in
from qkformer.data.registry import Data
from qkformer.models import SpikingNetwork
from qkformer.text import one_line
from qkformer.training.config import ComputeConfig, Config, ConfigError, changed_keys


def prepare_model(model: nn.Module, compute: ComputeConfig, device: torch.device) -> nn.Module:
    """Put a model where and how it is computed with."""
    layout = torch.channels_last if compute.channels_last else torch.preserve_format
    return model.to(device, memory_format=layout)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def create_model(config: Config, data: Data) -> SpikingNetwork:
    """The model that `config.model` names, for the classes, channels and size of the data.

    Raises:
        ConfigError: the model does not take these arguments, or this input size.
    """
    return _create(config, num_classes=data.num_classes, in_chans=data.in_chans)


def load_model(
    config: Config, checkpoint: str | Path, *, use_ema: bool = False
) -> tuple[SpikingNetwork, LoadReport]:
    """The configured model with a checkpoint's weights and its classes and channels, without data;
    and what was loaded.

    Raises:
        ConfigError, CheckpointError: as :func:`check_model`, which goes before.
    """
    model = _create(config, **sizes_in(_outline(config), checkpoint, use_ema=use_ema))
    report = load_checkpoint(model, checkpoint, use_ema=use_ema)
    return model.eval(), report


def check_model(
    config: Config,
    checkpoint: str | Path | None = None,
    *,
    use_ema: bool = False,
    on_purpose: Collection[str] = (),
) -> list[str]:
    """Refuse, before data are looked for, a model or a checkpoint that is impossible with any data.

    Neuron, attention's scale, wiring, ... leave no trace in a model's weights, but make another
    function of them. Files of our own record what they were trained with; others are not checked
    for it.

    Args:
        checkpoint: The file from which weights will be loaded; None where there is none.
        use_ema: Whether they will be the averaged ones.
        on_purpose: Which of T and ssa were chosen for this very use of the file.

    Returns:
        A line for each of T and ssa in which configuration and file differ otherwise: both may be
        changed, and both change the numbers.

    Raises:
        ConfigError: the model does not take these arguments or this input size, or the file was
            trained with others.
        CheckpointError: the file cannot be read, or does not fit.
    """
    model = _outline(config)
    if checkpoint is None:
        return []
    recorded = check_checkpoint(model, checkpoint, use_ema=use_ema).get("model")
    if not isinstance(recorded, dict):
        return []
    values = {key: recorded.get(key) for key in ("T", "ssa", "neuron")}
    values["args"] = recorded.get("args") or {}
    trained = None  # where it cannot be built here, as with a neuron that is not registered
    with suppress(ConfigError):
        trained = _outline(replace(config, model=replace(config.model, **values)))
    if trained is None or _printed(trained) != _printed(model):
        sections = (recorded, vars(config.model))
        before, now = ({"model": {key: m.get(key) for key in ("neuron", "args")}} for m in sections)
        changed = ", ".join(changed_keys(before, now))
        raise ConfigError(
            f"{checkpoint} was trained with another model ({changed}): give these keys the values "
            "of its training, which the config.yml of the run has"
        )
    return [
        f"model.{key}: {getattr(model, key)}, but {checkpoint} was trained with "
        f"{getattr(trained, key)}"
        for key in ("T", "ssa")
        if getattr(model, key) != getattr(trained, key) and key not in on_purpose
    ]


def _outline(config: Config) -> SpikingNetwork:
    """The model without its weights, for classes and channels of its own."""
    with torch.device("meta"):
        return _create(config)


def _printed(model: SpikingNetwork) -> str:
    """What the layers compute, as they print it; whether by an argument or its default."""
    return str(model.stages).replace(f"ssa={model.ssa}", "ssa")


def _create(config: Config, **options: Any) -> SpikingNetwork:
    try:
        model = qkformer.create_model(config.model.name, **options, **config.model.arguments())
    except (TypeError, ValueError, RuntimeError) as error:  # the last: a backend that cannot run
        raise ConfigError(f"model: {one_line(error)}") from error
    if config.data.image_size % model.downsampling:
        raise ConfigError(
            f"data.image_size: must be a multiple of {model.downsampling} for "
            f"{config.model.name}, got {config.data.image_size}"
        )
    return model
