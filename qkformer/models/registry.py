"""Models by name: timm's registry, and one way to build what it names."""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from qkformer.models.network import SpikingNetwork
from qkformer.text import did_you_mean

TIMM_OPTIONS = {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only"}
TIMM_OPTIONS |= {"out_indices", "feature_cls", "pretrained_model_args"}

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build one of our models, or any other image model of timm's.

    ``timm.create_model(name, **kwargs)`` builds the same, but that timm drops arguments that are
    None: say ``attn_scale=1.0`` there for SSA without scaling.

    Args:
        name: one of :func:`list_models`, or a name of timm's, with or without a tag.
        kwargs: arguments of the model's class, over the variant's own; see
            :class:`~qkformer.models.qkformer.QKFormer` and
            :class:`~qkformer.models.base.SpikingTransformer`.

    Raises:
        ValueError: no such model, or an argument has no such value.
        TypeError: no such argument.
    """
    if not timm.is_model(name):
        raise ValueError(f"there is no model {name!r}{did_you_mean(name, list_models())}")
    create = timm.model_entrypoint(name) if _ours(name) else partial(timm.create_model, name)
    return create(**kwargs)


def list_models(pattern: str = "*") -> list[str]:
    """Names of our registered models that match a shell pattern."""
    return sorted(filter(_ours, timm.list_models(pattern)))


def _ours(name: str) -> bool:
    return timm.model_entrypoint(name).__module__.startswith("qkformer.")


def register_variants(
    cls: type[SpikingNetwork], variants: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """Register sizes of a family with timm: name -> (``default_cfg``, arguments of ``cls``)."""
    module = sys.modules[cls.__module__]
    cfgs = generate_default_cfgs({name: cfg for name, (cfg, _) in variants.items()})
    module.default_cfgs = {**getattr(module, "default_cfgs", {}), **cfgs}
    for name, (_, defaults) in variants.items():
        register_model(_entrypoint(cls, name, defaults))


def _entrypoint(cls: type[SpikingNetwork], name: str, defaults: dict[str, Any]) -> Callable:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> SpikingNetwork:
        return build(cls, name, pretrained, defaults, kwargs)

    entrypoint.__name__, entrypoint.__module__ = name, cls.__module__
    return entrypoint


def build(
    cls: type[SpikingNetwork],
    variant: str,
    pretrained: bool,
    defaults: dict[str, Any],
    kwargs: dict[str, Any],
) -> SpikingNetwork:
    """What every registered function does: ``cls(**defaults, **kwargs)``, as timm builds models."""
    accepted = arguments(cls)
    for name in kwargs:
        if name not in accepted | TIMM_OPTIONS:
            raise TypeError(f"{variant} takes no argument {name!r}{did_you_mean(name, accepted)}")
    options = {**defaults, **kwargs}
    stages = len(options.get("depths", (1,)))  # Spikformer has one resolution
    model = build_model_with_cfg(
        cls,
        variant,
        pretrained,
        feature_cfg={"out_indices": tuple(range(stages)), "feature_cls": "getter"},
        **options,
    )
    # what timm's save_for_hf writes, for "local-dir:" and "hf-hub:" to build the same model
    model._model_args = {key: kwargs[key] for key in kwargs if key in accepted}
    return model


def sized(name: str, size: int) -> dict[str, int]:
    """The argument that tells a model, ours or timm's, height and width of its input, if any."""
    fixed = timm.is_model(name) and timm.get_pretrained_cfg_value(name, "fixed_input_size")
    return {"img_size": size} if fixed else {}


def arguments(cls: type[SpikingNetwork]) -> set[str]:
    """Names of the keyword arguments that a family takes."""
    return {
        parameter.name
        for base in cls.__mro__
        if issubclass(base, SpikingNetwork)
        for parameter in inspect.signature(base.__init__).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def image_cfg(size: int = 224, num_classes: int = 1000, **kwargs: Any) -> dict[str, Any]:
    """timm's description of a model's input: ImageNet unless told otherwise."""
    return {
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "crop_pct": 224 / 256,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.embed.convs.0.conv",
        "classifier": "head",
        **kwargs,
    }


def cifar_cfg() -> dict[str, Any]:
    return image_cfg(32, 10, crop_pct=1.0, mean=CIFAR_MEAN, std=CIFAR_STD)


def dvs_cfg() -> dict[str, Any]:
    """Event frames: [T, 2, 128, 128] counts, as stored."""
    return image_cfg(128, 10, input_size=(2, 128, 128), crop_pct=1.0, mean=(0, 0), std=(1, 1))
