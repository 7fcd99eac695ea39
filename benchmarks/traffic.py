"""Bytes that one training step moves, counted from the shapes of what it runs: no device is needed.

Every operation is taken to read its inputs and to write its outputs once, as kernels do that are
bound by memory; CuPy's kernels are counted by what their source says. Views move nothing. A tensor
that comes in another memory layout than the operation works in is copied first, and that counts.
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
from torch.utils._pytree import tree_leaves, tree_map_only

import qkformer
from benchmarks.null_launcher import null_launcher
from benchmarks.roofline import CEILINGS, PUBLISHED_SIZE
from qkformer.neurons.cuda.layout import channels_last

NOTHING = ("empty", "new_empty", "zeros", "zeros_like", "empty_like", "_unsafe_view")
COPIES = ("clone", "copy_")


@contextmanager
def shapes_only() -> Iterator[None]:
    """New tensors are on the meta device, where CuPy's kernels seem to run."""
    with null_launcher("meta"), torch.device("meta"):
        yield


class Traffic(TorchDispatchMode):
    """Counts what runs inside: bytes, ``moved[operation]``, and the ``copies`` in it.

    A copy is named by its operation, or by that and the argument which is copied for it; the bytes
    of the latter are under "layout".
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        outputs = operation(*args, **(kwargs or {}))
        namespace, name = operation._schema.name.split("::")
        if operation.is_view or name in NOTHING:
            return outputs
        parameters = (argument.name for argument in operation._schema.arguments)
        given = dict(zip(parameters, args, strict=False))
        moved = sum(map(_bytes, tree_leaves((args, kwargs, outputs))))
        self.moved[name] += moved + _read_again(name, given)
        if name in COPIES:
            self.copies[name] += 1
        if name.startswith("convolution"):
            outputs = self._convolved(name, given, outputs)
        elif namespace == "qkformer":
            self._count_layout(name, given, channels_last(given.get("y", given.get("q"))))
        return outputs

    def _convolved(self, name: str, given: dict[str, Any], outputs: Any) -> Any:
        """As of cuDNN, which meta tensors do not know: channels last if an input is."""
        last = any(_innermost_channels(given[argument]) for argument in ("input", "weight"))
        self._count_layout(name, given, last)
        layout = torch.channels_last if last else torch.contiguous_format
        lay_out = lambda x: x.contiguous(memory_format=layout) if x.ndim == 4 else x  # noqa: E731
        return tree_map_only(Tensor, lay_out, outputs)

    def _count_layout(self, name: str, given: dict[str, Any], last: bool) -> None:
        for argument, value in given.items():
            of_heads = argument == "grads" and given.get("heads", 1) > 1
            layout = torch.channels_last if last and not of_heads else torch.contiguous_format
            for tensor in tree_leaves(value):
                image = isinstance(tensor, Tensor) and tensor.ndim == 4
                if image and not tensor.is_contiguous(memory_format=layout):
                    self.copies[f"{name}({argument})"] += 1
                    self.moved["layout"] += 2 * _bytes(tensor)


def training_step(model: nn.Module, x: Tensor) -> Traffic:
    """What forward and backward move, without loss and optimizer."""
    with Traffic() as traffic:
        output = model(x)
        output.backward(torch.empty_like(output))
    return traffic


def megabytes_per_image(
    name: str, *, batch: int = 32, channels_last: bool = False
) -> tuple[Counter[str], Counter[str]]:
    """Of a registered model at its published size, by operation, in 2-byte activations; and the
    copies in it, for a whole batch."""
    size, T = PUBLISHED_SIZE[name]
    layout = torch.channels_last if channels_last else torch.preserve_format
    with shapes_only():
        model = qkformer.create_model(name, T=T, backend="cupy").bfloat16().train()
        model.to(memory_format=layout)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
        frames = (T,) if model.in_chans == 2 else ()
        x = torch.empty(batch, *frames, model.in_chans, size, size, dtype=torch.bfloat16)
        traffic = training_step(model, x)
    megabytes = {operation: n / batch / 1e6 for operation, n in traffic.moved.items()}
    return Counter(megabytes), traffic.copies


def _bytes(value: object) -> int:
    if not isinstance(value, Tensor):
        return 0
    # a dimension that is expanded is in memory once
    sizes = (n for n, stride in zip(value.shape, value.stride(), strict=True) if stride)
    return prod(sizes) * value.element_size()


def _innermost_channels(x: Tensor) -> bool:
    """As PyTorch tells the layout that convolutions take: a 1x1 weight has one, too."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return last and x.stride(3) == x.shape[1] > 1


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
    columns = "contiguous", "channels_last", "copies in it", "all fused", "none fused"
    print("|", " | ".join(["MB per image", *columns, "channels_last, by operation"]), "|")
    print("|", " | ".join(["---"] * 7), "|")
    for name, ceiling in CEILINGS.items():
        contiguous, _ = megabytes_per_image(name)
        last, _ = megabytes_per_image(name, channels_last=True)
        counted = sum(contiguous.values()), sum(last.values()), last["clone"] + last["layout"]
        numbers = [f"{mb:.0f}" for mb in (*counted, ceiling.fused_mb, ceiling.unfused_mb)]
        parts = ", ".join(f"{op} {mb:.0f}" for op, mb in last.most_common(8))
        print("|", " | ".join([name, *numbers, parts]), "|")


if __name__ == "__main__":
    main()
