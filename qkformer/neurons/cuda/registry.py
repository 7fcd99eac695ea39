"""Functions on tensors as PyTorch operators."""

from collections.abc import Callable, Sequence

import torch

_LIBRARY = torch.library.Library("qkformer", "FRAGMENT")


def operator(
    name: str, *, fake: Callable, mutates: Sequence[str] = ()
) -> Callable[[Callable], torch._ops.OpOverload]:
    """Decorator that turns a function into ``torch.ops.qkformer.<name>``.

    As ``torch.library.custom_op``, without what that puts around every call (checks of aliasing,
    Dynamo's guard, lists of all arguments), which takes longer than to launch a kernel.

    Args:
        name: of the operator.
        fake: the same function for tensors without data, as ``torch.compile`` has them.
        mutates: the arguments that the function writes to.

    Returns:
        Decorator of a function with type hints, for any device, that returns none of its arguments.
        It has no gradient unless :func:`differentiable` gives it one.
    """

    def register(function: Callable) -> torch._ops.OpOverload:
        schema = torch.library.infer_schema(function, mutates_args=mutates)
        _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"qkformer::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.qkformer, name).default

    return register


def differentiable(operator: torch._ops.OpOverload, node: type[torch.autograd.Function]) -> None:
    """Make ``node`` what runs where ``operator`` is called with gradients.

    As ``torch.library.register_autograd``, for an ordinary autograd function.

    Args:
        operator: of :func:`operator`.
        node: takes the operator's arguments; its forward calls the operator inside of
            :func:`below_autograd`.
    """
    _LIBRARY.impl(operator, node.apply, "Autograd")


below_autograd = torch._C._AutoDispatchBelowAutograd
