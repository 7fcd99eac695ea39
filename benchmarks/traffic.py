"""Bytes that one training step moves, counted from the shapes of what it runs: no device is needed.

Every operation is taken to read its inputs and to write its outputs once, as kernels do that are
bound by memory; CuPy's kernels are counted by what their source says. Views move nothing.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import qkformer
from benchmarks.roofline import CEILINGS, PUBLISHED_SIZE
from qkformer.neurons.cuda.loader import LAUNCHERS

NOTHING = ("empty", "new_empty", "zeros", "zeros_like", "empty_like", "_unsafe_view")


class NoLauncher:
    """For meta tensors, which have shapes but no values."""

    def unavailable(self) -> None:
        """Nothing is missing."""

    def launch(self, *_arguments, **_more) -> None:
        """Operators of meta tensors stop at the shape of their output."""


@contextmanager
def shapes_only() -> Iterator[None]:
    """New tensors are on the meta device, where CuPy's kernels seem to run."""
    LAUNCHERS["meta"] = NoLauncher()
    try:
        with torch.device("meta"):
            yield
    finally:
        del LAUNCHERS["meta"]


class Traffic(TorchDispatchMode):
    """Counts the bytes of what runs inside: ``counted[operation]``."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        name = operation._schema.name.split("::")[1]
        if not operation.is_view and name not in NOTHING:
            moved = sum(map(_bytes, tree_leaves((args, kwargs, outputs))))
            parameters = (argument.name for argument in operation._schema.arguments)
            given = dict(zip(parameters, args, strict=False))
            self.counted[name] += moved + _read_again(name, given)
        return outputs


def training_step(model: nn.Module, x: Tensor) -> Counter[str]:
    """Bytes by operation of forward and backward, without loss and optimizer."""
    with Traffic() as traffic:
        output = model(x)
        output.backward(torch.empty_like(output))
    return traffic.counted


def megabytes_per_image(name: str, *, batch: int = 32) -> Counter[str]:
    """Of a registered model at its published size, by operation, in 2-byte activations."""
    size, T = PUBLISHED_SIZE[name]
    with shapes_only():
        model = qkformer.create_model(name, T=T, backend="cupy").bfloat16().train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
        frames = (T,) if model.in_chans == 2 else ()
        x = torch.empty(batch, *frames, model.in_chans, size, size, dtype=torch.bfloat16)
        counted = training_step(model, x)
    return Counter({operation: n / batch / 1e6 for operation, n in counted.items()})


def _bytes(value: object) -> int:
    if not isinstance(value, Tensor):
        return 0
    # a dimension that is expanded is in memory once
    sizes = (n for n, stride in zip(value.shape, value.stride(), strict=True) if stride)
    return prod(sizes) * value.element_size()


def _read_again(name: str, given: dict[str, Any]) -> int:
    """What an operation moves beyond the inputs it is given and its outputs."""
    if name == "convolution_backward":  # for the gradient of the input, and of the weight
        return _bytes(given["grad_output"]) if all(given["output_mask"][:2]) else 0
    if name == "bn_neuron_backward":  # sums over channels first, then the gradient of the input
        grads, y = given["grads"], given["y"]
        if not given["pool"]:
            return sum(map(_bytes, grads)) + _bytes(y)
        # of each window the gradient at its maximum and a byte that says where it is
        windows = grads[0].numel() // (given["steps"] if given["repeated"] else 1)
        return _bytes(y) + 2 * windows * (y.element_size() + 1)
    return 0


def main() -> None:
    """Print the table of benchmarks/README.md."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| MB per image | ours, counted | all fused | none fused | ours, by operation |")
    print("| --- | --- | --- | --- | --- |")
    for name, ceiling in CEILINGS.items():
        counted = megabytes_per_image(name)
        parts = ", ".join(f"{op} {mb:.0f}" for op, mb in counted.most_common(8))
        numbers = f"{sum(counted.values()):.0f} | {ceiling.fused_mb} | {ceiling.unfused_mb}"
        print(f"| {name} | {numbers} | {parts} |")


if __name__ == "__main__":
    main()
