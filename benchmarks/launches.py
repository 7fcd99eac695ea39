"""What one training step starts on a GPU, counted from what it runs: no device is needed.

Our kernels are counted by their launcher, at the sizes that a GPU would see; of PyTorch every
operation that computes or copies counts as one launch, the gradient of a convolution as one for
each gradient it gives. PyTorch's own may take several (cuDNN's conversions of layout, sums in two
steps), so a profile on a GPU shows more. Forward under autocast, cross-entropy and backward, all
tensors contiguous; without optimizer.
"""

import argparse
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import qkformer
from benchmarks.null_launcher import null_launcher
from benchmarks.roofline import PUBLISHED_SIZE

NOTHING = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view")
PRODUCTS = (F.conv1d, F.conv2d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm)


class Launches(TorchDispatchMode):
    """Counts PyTorch's launches inside: ``counted[operation]``; ours run on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        namespace, name = operation._schema.name.split("::")
        if namespace == "qkformer":  # what it does on a GPU, in place of what it says of shapes
            with self:
                return operation._op_dk(
                    torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {})
                )
        if name == "convolution_backward":
            self.counted[name] += sum(args[-1])
        elif not operation.is_view and name not in NOTHING:
            self.counted[name] += 1
        return operation(*args, **(kwargs or {}))


class Autocast(TorchFunctionMode):
    """``torch.autocast``, which knows no meta tensors: products take their inputs in 2 bytes."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            args, kwargs = tree_map(_half, (args, kwargs))
        return function(*args, **(kwargs or {}))


def _half(value: object) -> object:
    single = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(torch.bfloat16) if single else value


def training_step(model: nn.Module, x: Tensor) -> Counter[str]:
    """PyTorch's launches by operation; ours are the launcher's, see :func:`published`.

    Args:
        model, x: On the meta device.
    """
    targets = torch.empty(len(x), dtype=torch.long, device="meta")
    with Launches() as launches:
        with Autocast():
            logits = model(x)
        F.cross_entropy(logits.float(), targets).backward()
    return launches.counted


def published(name: str, *, batch: int) -> tuple[Counter[str], Counter[str]]:
    """Of a registered model at its published size: our kernels, PyTorch's operations."""
    size, T = PUBLISHED_SIZE[name]
    with null_launcher("meta") as launcher:
        with torch.device("meta"):
            model = qkformer.create_model(name, T=T, backend="cupy").train()
            frames = (T,) if model.in_chans == 2 else ()
            x = torch.empty(batch, *frames, model.in_chans, size, size)
        return launcher.launched, training_step(model, x)


def main(arguments: list[str] | None = None) -> None:
    """Print the table of benchmarks/README.md, and what is in it by name."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", nargs="+", choices=PUBLISHED_SIZE, default=list(PUBLISHED_SIZE))
    made.add_argument("--batch", type=int, default=32)
    options = made.parse_args(arguments)
    counts = {name: published(name, batch=options.batch) for name in options.model}
    print("| launches per step | all | our kernels | PyTorch's operations |")
    print("| --- | --- | --- | --- |")
    for name, (ours, others) in counts.items():
        totals = (ours.total() + others.total(), ours.total(), others.total())
        print(f"| {name} | {' | '.join(map(str, totals))} |")
    for name, parts in counts.items():
        for counted in parts:
            print(f"{name}: {', '.join(f'{n} {what}' for what, n in counted.most_common())}")


if __name__ == "__main__":
    main()
