"""The configured model for the configured data, and what of it can be said before there are any."""

import re
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
from qkformer.models.registry import sized
from qkformer.text import first_sentence, one_line
from qkformer.training.config import (
    ComputeConfig,
    Config,
    ConfigError,
    ModelConfig,
    changed_keys,
)


def prepare_model(model: nn.Module, compute: ComputeConfig, device: torch.device) -> nn.Module:
    """Put a model where and how it is computed with."""
    last = compute.channels_last
    if last == "auto":  # not on the CPU, where runs are to stay equal to the last bit
        last = device.type == "cuda"
    return model.to(device, memory_format=torch.channels_last if last else torch.preserve_format)


def megabytes(model: nn.Module) -> float:
    """What the parameters and buffers of a model take, as they are."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def create_model(config: Config, data: Data) -> nn.Module:
    """The model that `config.model` names, for the classes, channels and size of the data.

    Raises:
        ConfigError: the model does not take these arguments, or this input size.
    """
    return _create(config, num_classes=data.num_classes, in_chans=data.in_chans)


def create_teacher(config: Config, data: Data) -> nn.Module | None:
    """The model that `loss.teacher` names, for the same data, in evaluation mode; or None.

    Raises:
        ConfigError: it does not take this input size, or there are no weights for these classes.
        CheckpointError: its weights do not fit.
    """
    loss = config.loss
    if loss.teacher is None:
        return None
    args = {} if loss.teacher_weights else {"pretrained": True}
    try:
        teacher = create_model(replace(config, model=ModelConfig(loss.teacher, args=args)), data)
    except OSError as error:  # no way to the hub
        raise ConfigError(
            f"loss.teacher: cannot fetch {loss.teacher} ({first_sentence(error)}); give its file "
            "as loss.teacher_weights"
        ) from error
    if loss.teacher_weights:
        load_checkpoint(teacher, loss.teacher_weights)
    elif (classes := teacher.pretrained_cfg["num_classes"]) != data.num_classes:
        raise ConfigError(  # timm gives it a random head
            f"loss.teacher: the published {loss.teacher} knows {classes} classes, the data have "
            f"{data.num_classes}; give one of these as loss.teacher_weights"
        )
    return teacher.eval().requires_grad_(False)


def check_loss(config: Config) -> None:
    """Refuse a loss that is impossible with this model.

    Raises:
        ConfigError: with what the model lacks.
    """
    loss, name = config.loss, config.model.name
    if loss.tet_lambda is None and loss.teacher is None:
        return
    model = _outline(config)
    if loss.tet_lambda is not None and not isinstance(model, qkformer.models.SpikingNetwork):
        raise ConfigError(f"loss.tet_lambda: {name} has no time steps; leave it null")
    if loss.teacher and not getattr(model, "distilled", hasattr(model, "set_distilled_training")):
        raise ConfigError(
            f"loss.teacher: {name} has no second head to be taught; some models have one with "
            "model.args.distilled: true"
        )


def load_model(
    config: Config, checkpoint: str | Path, *, use_ema: bool = False
) -> tuple[nn.Module, LoadReport]:
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
        if getattr(model, key, None) != getattr(trained, key, None) and key not in on_purpose
    ]


def _outline(config: Config) -> nn.Module:
    """The model without its weights, for classes and channels of its own."""
    with torch.device("meta"):
        return _create(config)


def _printed(model: nn.Module) -> str:
    """What the layers compute, as they print it; whether by an argument or its default."""
    if not isinstance(model, qkformer.models.SpikingNetwork):
        return re.sub(r"\bp=[\d.]+", "p", str(model))  # dropout acts in training only
    return str(model.stages).replace(f"ssa={model.ssa}", "ssa")


def _create(config: Config, **options: Any) -> nn.Module:
    name, size = config.model.name, config.data.image_size
    try:
        options |= sized(name, size)
        model = qkformer.create_model(name, **options, **config.model.arguments())
    except TypeError as error:
        raise ConfigError(
            f"model: {one_line(error)}; null for what a network does not take"
        ) from error
    except (ValueError, RuntimeError, AssertionError) as error:  # a backend that cannot run, ...
        raise ConfigError(f"model: {one_line(error)}") from error
    if size % getattr(model, "downsampling", 1):
        raise ConfigError(
            f"data.image_size: must be a multiple of {model.downsampling} for {name}, got {size}"
        )
    return model
