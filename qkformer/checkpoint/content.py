"""What a checkpoint's content says, in every layout in which it is found: weights and records."""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from qkformer.checkpoint.io import CheckpointError
from qkformer.text import some_of

STATE_DICT_KEYS = ("model", "state_dict", "state_dict_ema")
ACCURACY_KEYS = ("acc1", "max_test_acc1", "metric")  # ours, the DVS release's, timm's
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def find_state_dict(
    content: dict[str, Any], path: str | os.PathLike, use_ema: bool
) -> tuple[str | None, dict[str, Tensor]]:
    """Key in the file and the state dict, its keys without the prefixes of wrappers."""
    where, state = None, _tensors(content)
    for key in STATE_DICT_KEYS[-1:] if use_ema else STATE_DICT_KEYS:
        if _tensors(content.get(key)):
            where, state = key, _tensors(content[key])
            break
    if use_ema and where is None:
        raise CheckpointError(f"{path}: there are no averaged weights (state_dict_ema) in it")
    if not state:
        raise CheckpointError(
            f"{path}: there is no state dict in it: neither under "
            f"{', '.join(STATE_DICT_KEYS)} nor at the top, where the keys are "
            f"{some_of([str(key) for key in content], 6)}"
        )
    return where, {_unwrapped(key): value for key, value in state.items()}


def has_averaged(content: dict[str, Any]) -> bool:
    """Whether averaged weights are in the file."""
    return bool(_tensors(content.get(STATE_DICT_KEYS[-1])))


def _tensors(content: Any) -> dict[str, Tensor]:
    """What of a dict's entries can be weights: dense tensors under names."""
    if not isinstance(content, dict):
        return {}
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
    }


def recorded_config(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration that our own training writes into its files; empty in others."""
    recorded = content.get("config")
    return recorded if isinstance(recorded, dict) else {}


def recorded_inputs(content: dict[str, Any]) -> dict[str, Any]:
    """What a file of ours says of the samples and the classes of its training."""
    recorded = content.get("inputs")
    return recorded if isinstance(recorded, dict) else {}


def accuracy_is_of(recorded: dict[str, Any]) -> str:
    """What our training's accuracy in a file is of, other than its weights on the test set.

    Args:
        recorded: The configuration of the training.
    """
    sections = [recorded.get(name) for name in ("optimizer", "data")]
    optimizer, data = (part if isinstance(part, dict) else {} for part in sections)
    facts = ["of the averaged weights"] * bool(optimizer.get("ema_decay"))
    facts += ["on held-out training samples"] * bool(data.get("val_fraction"))
    return f" ({', '.join(facts)})" if facts else ""


def _unwrapped(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.partition(".")[2]
    return key


def number(content: dict[str, Any], keys: Iterable[str], kind: type) -> Any:
    """The first of these entries that is a number."""
    for key in keys:
        value = content.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            return kind(value)
    return None
