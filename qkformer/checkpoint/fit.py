"""Does a state dict fit a model, where not, and which model would it fit?"""

import functools
import itertools
import os
import re
from collections.abc import Iterable
from contextlib import suppress

import timm
import torch
from torch import Tensor, nn

from qkformer.checkpoint.released import NoPublishedNames, released_names, unused_keys
from qkformer.models import create_model, list_models

# Names of heads and of distillation heads, ours and published.
HEAD = tuple(
    f"{head}.{leaf}"
    for head in ("head", "head_dist", "head_kd", "fc", "classification")
    for leaf in ("weight", "bias")
)


def heads(model: nn.Module) -> tuple[str, ...]:
    """`HEAD`, and what timm's description of a model calls so."""
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    named = (named,) if isinstance(named, str) else named
    return (*HEAD, *(f"{head}.{leaf}" for head in named for leaf in ("weight", "bias")))


def same_shape(a: Tensor, b: Tensor) -> bool:
    """Equal but for trailing ones: Linear [C, D], Conv1d [C, D, 1] and Conv2d [C, D, 1, 1].

    A tensor of another kind of numbers (integers for weights, complex ones) fits nowhere.
    """
    same_kind = (a.is_floating_point(), a.is_complex()) == (b.is_floating_point(), b.is_complex())
    return same_kind and _squeezed(a.shape) == _squeezed(b.shape)


def differences(
    own: dict[str, Tensor],
    names: dict[str, str],
    state: dict[str, Tensor],
    kept_out: set[str],
) -> dict[str, str]:
    """A line for every key in which file and model differ.

    Args:
        own: the model's state dict.
        names: our key -> key in the file, for all of ``own``.
        state: the file's state dict.
        kept_out: the file's keys that are not to be loaded.
    """
    lines = {}
    for key, name in names.items():
        if name in kept_out:
            continue
        ours = f"{list(own[key].shape)}" if key == name else f"{key} {list(own[key].shape)}"
        if name not in state:
            lines[name] = f"missing in the file: {name} (model: {ours})"
        elif not same_shape(state[name], own[key]):
            kind = str(state[name].dtype).removeprefix("torch.")
            theirs = f"{kind} {list(state[name].shape)}"
            lines[name] = f"{name}: {theirs} in the file, {ours} in the model"
    known = kept_out.union(names.values())
    for name, value in state.items():
        if name not in known:
            lines[name] = f"only in the file: {name} {list(value.shape)}"
    return lines


def refusal(
    path: str | os.PathLike, difference: dict[str, str], state: dict[str, Tensor], most: int = 8
) -> str:
    """What to tell the user: the first differences, and what to do about them."""
    lines = [f"{path} does not fit the model in {len(difference)} keys:"]
    lines += [f"  {line}" for line in list(difference.values())[:most]]
    if len(difference) > most:
        lines.append(f"  ... and {len(difference) - most} more")
    if difference.keys() <= set(HEAD):
        lines.append(
            "only the head differs: build the model with the file's num_classes, or keep the "
            "model's own head (skip_head=True, --model.skip_head true of train.py)"
        )
    return "\n".join(lines) + suggestion(state)


def suggestion(state: dict[str, Tensor]) -> str:
    """A line that names the models a state dict fits."""
    fitting = fitting_models(state)
    if not fitting:
        return "\nno registered model (with its default widths) fits the file"
    return f"\nthe file fits {' or '.join(fitting)}"


def fitting_models(state: dict[str, Tensor]) -> list[str]:
    """The calls that build the registered models a state dict fits.

    Several where only the wiring differs, which leaves no trace in the names: QKFormer and
    MS-QKFormer, Spikingformer and CML Spikingformer.

    Args:
        state: published names or ours.
    """
    heads = [state[key] for key in HEAD if key in state and state[key].ndim == 2]
    num_classes = len(heads[0]) if heads else 0
    shapes = {key: _squeezed(value.shape) for key, value in state.items()}
    fitting = {}
    for name, mlp_ratio in itertools.product(list_models(), (None, 1.0, 4.0)):
        for expected, unused in _namings(name, mlp_ratio, num_classes):
            if expected == {k: shape for k, shape in shapes.items() if not unused.fullmatch(k)}:
                options = {"num_classes": num_classes} | (
                    {} if mlp_ratio is None else {"mlp_ratio": mlp_ratio}
                )
                if num_classes == timm.get_pretrained_cfg_value(name, "num_classes"):
                    del options["num_classes"]
                arguments = [repr(name), *(f"{k}={v}" for k, v in options.items())]
                fitting.setdefault(name, f"create_model({', '.join(arguments)})")
    return list(fitting.values())


@functools.lru_cache(maxsize=1024)
def _namings(
    name: str, mlp_ratio: float | None, num_classes: int
) -> list[tuple[dict[str, tuple[int, ...]], re.Pattern]]:
    """Shapes of a model's keys and what to leave out, under our and the published names."""
    try:
        with torch.device("meta"):
            options = {} if mlp_ratio is None else {"mlp_ratio": mlp_ratio}
            model = create_model(name, num_classes=num_classes, **options)
    except TypeError:  # a family without MLPs
        return []
    own = {key: _squeezed(value.shape) for key, value in model.state_dict().items()}
    namings = [(own, re.compile(r"(?!)"))]
    with suppress(NoPublishedNames):
        names = released_names(model).values()
        published = {name: _squeezed(shape) for name, shape in names}
        namings.append((published, unused_keys(model)))
    return namings


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    shape = tuple(shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
