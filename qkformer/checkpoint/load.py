"""Load weights into a model: our own files, and every layout in which the published ones circulate.

Keys that take no part in the published forward are dropped by name; anything else that does not fit
is an error that shows the difference.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qkformer.checkpoint.content import (
    ACCURACY_KEYS,
    accuracy_is_of,
    find_state_dict,
    has_averaged,
    number,
    recorded_config,
    recorded_inputs,
)
from qkformer.checkpoint.fit import HEAD, differences, heads, refusal, same_shape, suggestion
from qkformer.checkpoint.io import CheckpointError, file_md5, read_checkpoint
from qkformer.checkpoint.released import NoPublishedNames, released_names, unused_keys
from qkformer.text import some_of


@dataclass(frozen=True)
class KnownFile:
    """A published file: what it is, and the configuration of this package that describes it."""

    name: str
    config: str


# by md5, as their links are dead
KNOWN_FILES = {
    "60df416983ae326bb14bdb4566444320": KnownFile(
        "QKFormer HST-10-384, ImageNet 224, 78.80 % (original SSA)",
        "imagenet_qkformer_10_384.yml",
    ),
    "85dd1f94c87ba5ec908fed5d0a3f7f69": KnownFile(
        "QKFormer HST-10-512, ImageNet 224, 82.04 % (original SSA)",
        "imagenet_qkformer_10_512.yml",
    ),
    "dc1595408ed1bd40346be2bdaf5015d5": KnownFile(
        "QKFormer HST-10-768, ImageNet 224, 84.22 % (original SSA)",
        "imagenet_qkformer_10_768.yml",
    ),
    "ba20af8eb450d4ec9c71009fde8e7125": KnownFile(
        "QKFormer HST-10-768, ImageNet 288, 85.25 % (original SSA)",
        "imagenet_qkformer_10_768_288.yml",
    ),
    "99a671118f67a680aa38b6ac5aae449a": KnownFile(
        "QKFormer HST-10-768, ImageNet 384, 85.65 % (original SSA)",
        "imagenet_qkformer_10_768_384.yml",
    ),
}


@dataclass(frozen=True)
class LoadReport:
    """What :func:`qkformer.load_checkpoint` did.

    Attributes:
        path, md5: of the file.
        known_as: what the md5 is known to be; None for a file not listed.
        state_dict_key: where the state dict was in the file; None for the file itself.
        published: the keys were published names, not ours.
        mapped: key in the file -> key in the model, of everything that was loaded.
        dropped: keys that take no part in the published forward.
        skipped: keys kept out: the head under ``skip_head``, what does not fit under
            ``strict=False``.
        missing: keys of the model that kept their value.
        epoch, accuracy: as recorded in the file (top-1 in %), None where they are not.
        recorded: the configuration of the training, as files of our own have it.
        inputs: its classes' names and what new samples go through, likewise: the arguments of
            :class:`qkformer.data.inputs.Inputs`.
        has_ema: the file has averaged weights, loaded or not.
    """

    path: str
    md5: str
    known_as: str | None
    state_dict_key: str | None
    published: bool
    mapped: dict[str, str]
    dropped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    epoch: int | None = None
    accuracy: float | None = None
    recorded: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    has_ema: bool = False

    def __str__(self) -> str:
        names = "published" if self.published else "our own"
        lines = [f"{self.path} (md5 {self.md5}): {len(self.mapped)} tensors, {names} names"]
        if self.known_as:
            lines.append(f"known as {self.known_as}")
        if self.epoch is not None:
            lines.append(f"epoch {self.epoch}")
        if self.accuracy is not None:
            of = accuracy_is_of(self.recorded)
            lines.append(f"recorded top-1 {self.accuracy:.2f} %{of}")
        for what in ("dropped", "skipped", "missing"):
            keys = getattr(self, what)
            if keys:
                lines.append(f"{what}: {some_of(keys, 6)}")
        return "; ".join(lines)


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    strict: bool = True,
    skip_head: bool = False,
    use_ema: bool = False,
) -> LoadReport:
    """Load a checkpoint's weights into ``model``.

    Args:
        model: one of this package's models.
        path: a file of ours, of QKFormer, MS-QKFormer, Max-Former or Spikformer (training
            checkpoints or bare state dicts, ``module.`` prefix or not), .safetensors, or a folder
            that ``python -m qkformer.export hf`` or timm's ``save_for_hf`` wrote.
        strict: refuse a file that does not fit; if False, load the tensors that do, and report.
        skip_head: keep the model's own head, to fine-tune on other classes.
        use_ema: take the averaged weights, ``state_dict_ema``.

    Returns:
        What was loaded, dropped and left alone, and what the file records of itself.

    Raises:
        CheckpointError: the file cannot be read safely, holds no state dict, or does not fit; the
            model is then unchanged. What has no parameters (``neuron``, ``residual``,
            ``attn_scale``) leaves no trace in a state dict: a file of ours is checked by the model
            name it records, a bare state dict cannot be.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model, got {type(model).__name__}")
    content = read_checkpoint(path, mmap=True)
    state_dict_key, state = find_state_dict(content, path, use_ema)
    match = _match(model, state, path, heads(model) if skip_head else ())
    if match.difference and (strict or not match.fitting):
        raise CheckpointError(refusal(path, match.difference, state))
    if strict:
        _check_name(model, content, path)
    own = model.state_dict()
    with torch.no_grad():
        for key, name in match.fitting.items():
            own[key].copy_(state[name].reshape(own[key].shape))
    md5 = file_md5(path)
    loaded = {*match.fitting.values(), *match.dropped}
    return LoadReport(
        path=str(path),
        md5=md5,
        known_as=KNOWN_FILES[md5].name if md5 in KNOWN_FILES else None,
        state_dict_key=state_dict_key,
        published=match.published,
        mapped={name: key for key, name in match.fitting.items()},
        dropped=match.dropped,
        skipped=[name for name in state if name not in loaded],
        missing=[key for key in own if key not in match.fitting],
        epoch=number(content, ("epoch",), int),
        accuracy=number(content, ACCURACY_KEYS, float),
        recorded=recorded_config(content),
        inputs=recorded_inputs(content),
        has_ema=has_averaged(content),
    )


def check_checkpoint(
    model: nn.Module, path: str | os.PathLike, *, use_ema: bool = False
) -> dict[str, Any]:
    """Refuse a checkpoint that cannot fit ``model``, whatever its classes and input channels.

    Args:
        model: may be on the "meta" device; is left as it is.
        path, use_ema: as for :func:`load_checkpoint`.

    Returns:
        The configuration of the training, as files of our own record it; empty for others.

    Raises:
        CheckpointError: as :func:`load_checkpoint`.
    """
    content, _, _ = _checked(model, path, use_ema)
    return recorded_config(content)


def sizes_in(model: nn.Module, path: str | os.PathLike, *, use_ema: bool = False) -> dict[str, int]:
    """``num_classes`` and ``in_chans`` of the model that a checkpoint is of.

    Args:
        model: the same one but for these two; may be on the "meta" device.
        path, use_ema: as for :func:`load_checkpoint`.

    Raises:
        CheckpointError: as :func:`check_checkpoint`.
    """
    _, state, names = _checked(model, path, use_ema)
    head, first = (
        state.get(names.get(f"{model.pretrained_cfg[key]}.weight"))
        for key in ("classifier", "first_conv")
    )
    return {"num_classes": 0 if head is None else len(head), "in_chans": first.shape[1]}


def _checked(
    model: nn.Module, path: str | os.PathLike, use_ema: bool
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """A file's content, its weights, and our key -> key in the file; refused if it does not fit."""
    content = read_checkpoint(path, mmap=True)
    _, state = find_state_dict(content, path, use_ema)
    match = _match(model, state, path, heads(model))
    first = match.names.get(f"{model.pretrained_cfg['first_conv']}.weight")
    difference = {
        name: line for name, line in match.difference.items() if name != first or name not in state
    }
    if difference:
        raise CheckpointError(refusal(path, difference, state))
    _check_name(model, content, path)
    return content, state, match.names


@dataclass(frozen=True)
class _Match:
    """What of a file belongs where in a model.

    Attributes:
        published: the file has published names.
        names: our key -> key in the file, of the whole model.
        dropped: keys of the file that take no part in the published forward.
        fitting: as ``names``, of what fits.
        difference: key in the file -> a line, of everything that does not fit.
    """

    published: bool
    names: dict[str, str]
    dropped: list[str]
    fitting: dict[str, str]
    difference: dict[str, str]


def _match(
    model: nn.Module,
    state: dict[str, Tensor],
    path: str | os.PathLike,
    kept_out: Iterable[str],
) -> _Match:
    own = model.state_dict()
    published = not any(key in own for key in state if key not in HEAD)
    if published:
        names, dropped = _published_names(model, state, path)
    else:
        names, dropped = {key: key for key in own}, []
    kept_out = {*dropped, *kept_out}
    fitting = {
        key: name
        for key, name in names.items()
        if name in state and name not in kept_out and same_shape(state[name], own[key])
    }
    difference = differences(own, names, state, kept_out)
    return _Match(published, names, dropped, fitting, difference)


def _published_names(
    model: nn.Module, state: dict[str, Tensor], path: str | os.PathLike
) -> tuple[dict[str, str], list[str]]:
    """Our key -> published key, and the file's keys that take no part in the published forward."""
    try:
        names = {key: name for key, (name, _) in released_names(model).items()}
        unused = unused_keys(model)
        return names, [key for key in state if unused.fullmatch(key)]
    except NoPublishedNames as error:
        raise CheckpointError(
            f"{path}: the keys are not this model's, and it has no published names: {error}"
            f"{suggestion(state)}"
        ) from error


def _check_name(model: nn.Module, content: dict[str, Any], path: str | os.PathLike) -> None:
    """Refuse a file that records another registered model."""
    section = recorded_config(content).get("model")
    recorded = section.get("name") if isinstance(section, dict) else None
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture")
    if isinstance(recorded, str) and architecture and recorded.split(".")[0] != architecture:
        raise CheckpointError(f"{path} is of {recorded}, the model is {architecture}")
