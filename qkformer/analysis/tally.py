"""Integer sums of what goes through one module, by time step.

A tally is fed by a hook. Its ``facts`` are sizes and maxima, which several processes take the
largest of; its ``sums`` are int64, which they add.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from qkformer.data.source import DataError

Total = Callable[[Tensor], Tensor]  # sum over all processes of a tensor on the CPU


class Frame:
    """What all tallies know of the batch that runs.

    Attributes:
        T, samples: time steps and B.
        unit: height of a spike.
        order: modules seen for the first time.
        fired: whether a neuron has run in this batch.
        spikes: those of the last one, by step.
    """

    def __init__(self, unit: float):
        self.unit, self.T, self.samples, self.order = unit, 1, 0, 0
        self.start(T=1, samples=0)

    def start(self, T: int, samples: int) -> None:
        self.T, self.samples, self.fired = T, samples, False
        self.spikes: Tensor | None = None
        self._last: tuple[Tensor, tuple] | None = None

    def counts(self, x: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, int] | None:
        """Sums over B and C of a layer's input and of its indicator, and the largest value.

        Args:
            x: the input, and ``steps`` the same as [steps, B, C, ...].

        Returns:
            int64 [steps, ...] both; None where a value is no number of spikes.
        """
        # q, k and v read one input, and so do a shortcut and its branch
        if self._last is not None and _same(self._last[0], x):
            return self._last[1]
        result = self._counts(steps)
        self._last = x, result
        return result

    def _counts(self, x: Tensor) -> tuple[Tensor, Tensor, int] | None:
        if x.is_meta:
            return None
        if self.unit != 1:
            x = x / self.unit
        least, most = (value.item() for value in x.aminmax())
        whole = x.round()
        if least < 0 or not most < float("inf"):
            return None
        if not (torch.equal(x, whole) if self.unit == 1 else torch.allclose(x, whole, atol=1e-3)):
            return None
        planes = summed(whole)
        return planes, planes if most <= 1 else summed(whole.clamp(max=1)), round(most)


def _same(a: Tensor, b: Tensor) -> bool:
    traits = (Tensor.data_ptr, Tensor.size, Tensor.stride)
    return a._version == b._version and all(trait(a) == trait(b) for trait in traits)


class Tally:
    """Sums of one module.

    Args:
        name: path of the module.
        module: the module.
        frame: of the pass.
    """

    facts_of: ClassVar[tuple[str, ...]]
    sums_of: ClassVar[tuple[str, ...]]

    def __init__(self, name: str, module: nn.Module, frame: Frame):
        self.name, self.module, self.frame = name, module, frame
        self.facts = dict.fromkeys(("order", "steps", *self.facts_of), 0)
        self.sums: dict[str, Tensor] = {}
        self.at = 0  # steps of this batch behind us; a single-step module is called T times

    def saw(self, **facts: int) -> None:
        """Sizes, which must be those of the batch before.

        Raises:
            DataError: they are not.
        """
        if not self.facts["order"]:
            self.frame.order += 1
            facts["order"] = self.frame.order
        for name, value in facts.items():
            if self.facts[name] not in (0, value):
                raise DataError(
                    f"{self.name}: {name} {value} after {self.facts[name]} in the batches before; "
                    "measure inputs of one size at a time"
                )
            self.facts[name] = value

    def largest(self, **facts: int) -> None:
        for name, value in facts.items():
            self.facts[name] = max(self.facts[name], value)

    def add(self, **sums: Tensor) -> None:
        """Sums [steps of this call] of the next steps; on the meta device there are none."""
        if next(iter(sums.values())).is_meta:
            return
        for name, value in sums.items():
            total, end = self.sums.get(name, value[:0]), self.at + len(value)
            if len(total) < end:
                total = torch.cat([total, value.new_zeros(end - len(total))])
            total[self.at : end] += value
            self.sums[name] = total

    def done(self, steps: int) -> None:
        """A call of so many steps is behind us."""
        self.at += steps
        self.largest(steps=self.at)


def over_time(x: Tensor, frame: Frame, module: nn.Module, *, folded: bool = False) -> Tensor:
    """x of a module -> [steps, B, ...].

    Args:
        folded: the first axis is all that may hold time, as of convolutions.

    Raises:
        DataError: its shape is neither [T, B, ...], [T * B, ...], [B, ...] nor, where T is 1,
            [B * n, ...].
    """
    T, B = frame.T, frame.samples
    if getattr(module, "step_mode", None) == "s" and len(x) == B:
        return x.unsqueeze(0)
    if not folded and x.shape[:2] in ((T, B), (1, B)):
        return x
    if len(x) in (T * B, B):
        return x.unflatten(0, (-1, B))
    if T == 1 and len(x) % B == 0:  # windows of an image, side by side with the samples
        return x.reshape(1, B, -1, *x.shape[1:])
    raise DataError(
        f"{type(module).__name__}: cannot tell time steps in {list(x.shape)} with T = {T} and "
        f"batches of {B}; give measure(..., T=...)"
    )


def summed(x: Tensor) -> Tensor:
    """Integers [steps, B, C, ...] -> int64 [steps, ...], summed over B and C.

    Exact while float32 holds the sums over C, to 2^24; those over B are in float64.
    """
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    return x.sum(2, dtype=dtype).sum(1, dtype=torch.float64).long()


def merge(tallies: list[Tally], total: Total) -> None:
    """Give every process the sums of all. A process may have seen no batch at all."""
    keys = [(tally, name) for tally in tallies for name in tally.facts]
    facts = torch.tensor([tally.facts[name] for tally, name in keys])
    for (tally, name), value in zip(keys, largest(facts, total).tolist(), strict=True):
        tally.facts[name] = value
    vectors = []
    for tally in tallies:
        for name in tally.sums_of:
            vector = torch.zeros(tally.facts["steps"], dtype=torch.int64)
            if name in tally.sums:
                vector[: len(tally.sums[name])] = tally.sums[name].cpu()
            vectors.append(vector)
    sums = iter(total(torch.cat(vectors)).split([len(vector) for vector in vectors]))
    for tally in tallies:
        tally.sums = {name: next(sums) for name in tally.sums_of}


def largest(values: Tensor, total: Total) -> Tensor:
    """The largest of all processes' values >= 0, from nothing but sums: bit by bit."""
    found = torch.zeros_like(values)
    for bit in reversed(range(62)):
        candidate = found | (1 << bit)
        found = torch.where(total((values >= candidate).long()) > 0, candidate, found)
    return found
