"""The configuration of a run: every key, its meaning and its limits.

`Config` gathers the sections, each of which lives beside the code that it configures.
"""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

import timm

from qkformer.data.augmentation import AugmentationConfig
from qkformer.data.registry import DATASETS
from qkformer.data.source import DataConfig
from qkformer.text import did_you_mean
from qkformer.training.objective import LossConfig
from qkformer.training.optimizer import OptimizerConfig
from qkformer.training.schedule import ScheduleConfig


class ConfigError(ValueError):
    """A key or an option that is unknown or impossible; the message is one line."""


@dataclass
class ModelConfig:
    """The model, as qkformer.create_model builds it.

    null leaves an argument to the model's own default, and is all that a model takes which has no
    such argument: an ANN has neither neurons nor their backend.

    Args:
        name: One of qkformer.list_models(), or any other image model of timm's.
        T: Time steps.
        ssa: Spiking self-attention, fixed or original (with the published leak between samples).
        neuron: lif, if or plif.
        mlp_ratio: Hidden width of the MLPs in units of their input's width.
        drop_path_rate: Stochastic depth of the last block, 0 <= rate < 1; rises from 0 linearly.
        backend: Implementation of the neurons; auto, and null, take the fastest that runs here.
        weights: Checkpoint to start from, as for fine-tuning; null for random weights.
        skip_head: Leave out that checkpoint's head, as for other classes.
        args: Any other argument of create_model, as in {embed_dim: 64, depths: [1, 1, 2]}.
    """

    name: str
    T: int | None = None
    ssa: Literal["fixed", "original"] | None = None
    neuron: str | None = None
    mlp_ratio: float | None = None
    drop_path_rate: float | None = None
    backend: Literal["auto", "torch", "cupy"] | None = None
    weights: str | None = None
    skip_head: bool = False
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not timm.is_model(self.name):
            raise ValueError(
                f"name: no model {self.name!r}{did_you_mean(self.name, timm.list_models())}"
            )
        if self.T is not None and self.T < 1:
            raise ValueError(f"T: must be at least 1, got {self.T}")
        if self.mlp_ratio is not None and not 0 < self.mlp_ratio < math.inf:
            raise ValueError(f"mlp_ratio: must be above 0, got {self.mlp_ratio}")
        if self.drop_path_rate is not None and not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate: must be in 0 <= rate < 1, got {self.drop_path_rate}")
        if self.skip_head and self.weights is None:
            raise ValueError("skip_head: acts with weights only")
        for key in self.args:
            if key in ("num_classes", "in_chans", "img_size"):
                raise ValueError(f"args.{key}: is given by the data set, leave it out")
            if key in self.__dataclass_fields__:
                raise ValueError(f"args.{key}: has a key of its own, model.{key}")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for create_model, without those left to the model's default."""
        not_arguments = ("name", "weights", "skip_head", "args")
        own = {key: value for key, value in asdict(self).items() if key not in not_arguments}
        return {key: value for key, value in own.items() if value is not None} | self.args


@dataclass
class ComputeConfig:
    """How the arithmetic is done.

    Args:
        precision: Of convolutions and matrix products: fp32; fp16 (with a gradient scaler; on GPUs,
            on the CPU float32 takes its place); bf16 (on Ampere and newer, or the CPU).
        channels_last: Memory layout of convolutions; auto: on GPUs.
        compile: torch.compile.
        cuda_graph: Record a training step as one CUDA graph and let this take its place: what
            limits small models on a GPU is Python. auto does so with one process where it can be
            done and says why where it cannot; true makes that an error, and does so with several.
        grad_checkpointing: Keep the blocks' inputs only and compute the rest again in backward.
        sync_batchnorm: BatchNorm over the batches of all processes (GPUs only); the published runs
            normalise every process's batch by itself.
    """

    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    channels_last: Literal["auto"] | bool = "auto"
    compile: bool = False
    cuda_graph: Literal["auto"] | bool = "auto"
    grad_checkpointing: bool = False
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        if self.compile and self.grad_checkpointing:
            raise ValueError("compile: does not work together with grad_checkpointing")


@dataclass
class CheckpointConfig:
    """When a run is saved, besides at the end of every epoch (last.pth) and when it is stopped.

    Args:
        minutes: Time between checkpoints in the middle of an epoch; 0 for none.
        every: Keep a copy of every so many epochs' checkpoint (epoch-0009.pth); 0 for none.
    """

    minutes: float = 30.0
    every: int = 0

    def __post_init__(self) -> None:
        for key in ("minutes", "every"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: must be 0 or more, got {getattr(self, key)}")


@dataclass
class LogConfig:
    """What is seen of a run, besides a line per epoch.

    Args:
        every: Steps between two lines on the screen and points in TensorBoard within an epoch; 0
            for none.
        wandb: Weights & Biases beside TensorBoard; the package has to be installed.
        energy: Measure what the last epoch's weights cost on the test set: energy.json and .csv,
            and the energies and firing rates as points in TensorBoard.
    """

    every: int = 50
    wandb: bool = False
    energy: bool = False

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every: must be 0 or more, got {self.every}")


@dataclass(kw_only=True)
class Config:
    """A training run.

    Args:
        epochs: Passes over the training data, without those of schedule.cooldown_epochs.
        seed: Of the weights, the order of the data and every other random number.
        model: Arguments of qkformer.create_model; null leaves one at the model's own default
        data: Which data, how large, how many at once
        augmentation: What is done to training samples
        loss: What is minimised
        optimizer: The optimizer and the steps it takes
        schedule: Learning rate over time
        compute: How the arithmetic is done
        checkpoint: When a run is saved
        log: What is seen of a run, besides a line per epoch
    """

    epochs: int
    seed: int = 0
    model: ModelConfig
    data: DataConfig
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs: must be at least 1, got {self.epochs}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: must be in 0 <= seed < 2**32, got {self.seed}")
        if self.data.name not in DATASETS:
            message = f"no data set {self.data.name!r}{did_you_mean(self.data.name, DATASETS)}"
            raise ValueError(f"data.name: {message}")
        if self.optimizer.lr_per_batch is None:
            self.check_rates(processes=1)

    def check_rates(self, processes: int) -> None:
        """Refuse rates above the peak, which may depend on the number of processes.

        Raises:
            ConfigError: with both of them.
        """
        optimizer, samples = self.optimizer, self.samples_per_step(processes)
        highest = f"{optimizer.peak_lr(samples):.3g}"
        if optimizer.lr_per_batch is not None:
            scaled = f"{optimizer.lr} for {optimizer.lr_per_batch} samples per step to {samples}"
            highest += f", scaled from {scaled}"
        for key in ("warmup_lr", "min_lr"):
            rate = getattr(self.schedule, key)
            if rate > optimizer.peak_lr(samples):
                message = f"must not be above optimizer.lr ({highest}), got {rate}"
                raise ConfigError(f"schedule.{key}: {message}")

    def samples_per_step(self, processes: int) -> int:
        """Of all processes, in all accumulated batches."""
        return self.data.batch_size * processes * self.optimizer.accumulation_steps

    @property
    def all_epochs(self) -> int:
        """Epochs with those of the cool-down."""
        return self.epochs + self.schedule.cooldown_epochs


SECTIONS = {part.name: part.type for part in fields(Config) if is_dataclass(part.type)}
_FIELDS = {part.name: part for part in fields(Config) if part.name not in SECTIONS} | {
    f"{name}.{part.name}": part for name, section in SECTIONS.items() for part in fields(section)
}
# Every key in dotted form, as in model.name, with its type; and what it is where nothing is said.
KEYS: dict[str, Any] = {key: part.type for key, part in _FIELDS.items()}
DEFAULTS: dict[str, Any] = {
    key: part.default if part.default_factory is MISSING else part.default_factory()
    for key, part in _FIELDS.items()
    if (part.default, part.default_factory) != (MISSING, MISSING)
}
# These may change between two sittings of one run: they say where and how fast, not what.
FREE_ON_RESUME = (
    "checkpoint.every",
    "checkpoint.minutes",
    "compute.channels_last",
    "compute.compile",
    "compute.cuda_graph",
    "compute.grad_checkpointing",
    "data.download",
    "data.root",
    "data.workers",
    "log.energy",
    "log.every",
    "log.wandb",
    "model.backend",
)


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys in which two configurations (as dicts) differ, as in "optimizer.lr: 0.1 -> 0.2"."""
    old, new = flat(old), flat(new)
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and key not in FREE_ON_RESUME
    ]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys in dotted form, with those of model.args and the like; tuples as lists."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = list(value) if isinstance(value, tuple) else value
    return leaves
