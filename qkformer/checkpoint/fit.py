"""Does a state dict fit a model, where not, and which model would it fit?"""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from qkformer.checkpoint.released import NoPublishedNames, released_names, unused_keys
from qkformer.models import SpikingTransformer, create_model, list_models

HEAD = ("head.weight", "head.bias")  # in our names and in every published code


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

    Several where only the wiring differs, which leaves no trace in our names: QKFormer and
    MS-QKFormer.

    Args:
        state: published names or ours.
    """
    head = state.get("head.weight")
    num_classes = len(head) if head is not None and head.ndim == 2 else 0
    shapes = {key: _squeezed(value.shape) for key, value in state.items()}
    fitting = {}
    for name, mlp_ratio in itertools.product(list_models(), (None, 1.0, 4.0)):
        options = {"num_classes": num_classes}
        if mlp_ratio is not None:
            options["mlp_ratio"] = mlp_ratio
        model = _outline(name, **options)
        for expected, unused in _namings(model, state):
            if expected == {key: shape for key, shape in shapes.items() if key not in unused}:
                if model.num_classes == model.pretrained_cfg["num_classes"]:
                    del options["num_classes"]
                arguments = [repr(name), *(f"{k}={v}" for k, v in options.items())]
                fitting.setdefault(name, f"create_model({', '.join(arguments)})")
    return list(fitting.values())


@functools.lru_cache(maxsize=256)
def _outline(name: str, **options: float) -> SpikingTransformer:
    with torch.device("meta"):
        return create_model(name, **options)


def _namings(
    model: SpikingTransformer, state: dict[str, Tensor]
) -> Iterator[tuple[dict[str, tuple[int, ...]], list[str]]]:
    """Shapes of the model's keys and keys to leave out, under our and the published names."""
    yield {key: _squeezed(value.shape) for key, value in model.state_dict().items()}, []
    try:
        names = released_names(model).values()
        yield {name: _squeezed(shape) for name, shape in names}, unused_keys(model, state)
    except NoPublishedNames:
        return


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    shape = tuple(shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
