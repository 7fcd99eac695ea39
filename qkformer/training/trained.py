"""A trained model and what goes with it, without its data set: for predictions and for the hub."""

from dataclasses import dataclass, replace
from pathlib import Path

from qkformer.checkpoint.io import CheckpointError
from qkformer.checkpoint.load import LoadReport
from qkformer.data.inputs import Inputs, inputs_of, known_inputs
from qkformer.data.registry import DATASETS
from qkformer.models import SpikingNetwork
from qkformer.training.config import Config, ConfigError
from qkformer.training.model import load_model


@dataclass(frozen=True)
class Trained:
    """A model with its weights.

    Attributes:
        model: In evaluation mode, in float32 on the CPU.
        config: With which it was trained, or tested.
        inputs: What becomes of a new sample, and the names of the classes.
        report: What was loaded.
    """

    model: SpikingNetwork
    config: Config
    inputs: Inputs
    report: LoadReport


def load_trained(config: Config, checkpoint: Path, *, use_ema: bool = False) -> Trained:
    """A checkpoint as configured.

    The inputs are those that the file records; else, as for published files or with another data
    set, those of the one that is configured, which has to be there unless it is a published one.

    Raises:
        ConfigError, CheckpointError: as :func:`qkformer.training.model.check_model`.
        DataError: the data set is needed, and not there.
    """
    model, report = load_model(config, checkpoint, use_ema=use_ema)
    inputs = _recorded(report, config.data.name) or known_inputs(config.data.name)
    if inputs is None:
        read = DATASETS[config.data.name]
        inputs = inputs_of(read(config.data, T=config.model.T, training=False))
    channels = model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels
    if inputs.in_chans != channels:
        raise ConfigError(
            f"data.name: {config.data.name} has {inputs.in_chans} channels, {checkpoint} is of "
            f"{channels}: name the data set that it was trained on"
        )
    if len(inputs.class_names) != model.num_classes:
        inputs = replace(inputs, class_names=tuple(map(str, range(model.num_classes))))
    return Trained(model, config, inputs.normalised_as(config.data), report)


def _recorded(report: LoadReport, data: str) -> Inputs | None:
    """The inputs in the file, if it was trained on this data set."""
    section = report.recorded.get("data")
    if not (report.inputs and isinstance(section, dict) and section.get("name") == data):
        return None
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in report.inputs.items()}
    try:
        return Inputs(**values)
    except TypeError as error:
        raise CheckpointError(f"{report.path}: its inputs are of another version") from error
