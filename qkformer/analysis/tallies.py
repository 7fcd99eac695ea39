"""What is counted of a layer, an attention and a neuron."""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkformer.analysis.attention import MaskAttention, ProductAttention, Sums
from qkformer.analysis.records import Layer, Neuron
from qkformer.analysis.tally import Tally, over_time, summed
from qkformer.neurons import SpikingNeuron

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LayerTally(Tally):
    """A convolution or linear layer, by what enters it."""

    facts_of = ("macs", "outputs", "elements", "real", "max", "stem")
    sums_of = ("inputs", "nonzeros", "additions", "additions_nonzero")
    _reached: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple, out: Tensor) -> None:
        x = args[0].detach()
        convolves = isinstance(module, CONVOLUTIONS)
        folded = convolves and x.ndim == len(module.kernel_size) + 2
        steps = over_time(x, self.frame, module, folded=folded)
        each = len(steps) * self.frame.samples
        outputs = out.numel() // each
        weights_of_output = module.weight[0].numel()
        self.saw(macs=outputs * weights_of_output, outputs=outputs, elements=x.numel() // each)
        self.largest(stem=int(not self.frame.fired))
        if not self.facts["real"]:
            counts = self.frame.counts(x, steps if convolves else steps.flatten(2))
            if counts is None:
                self.largest(real=1)
            else:
                planes, nonzeros, most = counts
                self.largest(max=most)
                reach = self._reach(planes)
                sums = (planes, nonzeros, planes * reach, nonzeros * reach)
                each = (total.reshape(len(steps), -1).sum(1) for total in sums)
                self.add(**dict(zip(self.sums_of, each, strict=True)))
        self.done(len(steps))

    def _reach(self, planes: Tensor) -> Tensor:
        """Weights that an input at each position of ``planes`` [steps, ...] meets: int64 [...]."""
        if self._reached is None:  # inputs are of one size, or refused
            self._reached = _reach(self.module, planes.shape[1:]).to(planes.device)
        return self._reached

    def record(self, T: int, samples: int, *, head: bool, published: str | None) -> Layer:
        facts, weight = self.facts, self.module.weight
        kind = "binary" if facts["max"] <= 1 else "integer"
        kind = "head" if head else "real" if facts["real"] else kind
        sums = {}
        if kind in ("binary", "integer"):
            sums = {name: tuple(self.sums[name].tolist()) for name in self.sums_of}
            sums["input_max"] = facts["max"]
        return Layer(
            layer=self.name,
            published=published,
            kind=kind,
            stem=bool(facts["stem"]) and not head,
            macs=facts["macs"],
            # a static image is convolved once for all its equal steps
            steps=T if facts["stem"] and not head else facts["steps"],
            outputs=facts["outputs"],
            weights=weight.numel(),
            bias=self.module.bias is not None,
            input_elements=facts["elements"],
            samples=samples,
            **sums,
        )


def _reach(module: nn.Module, sizes: torch.Size) -> Tensor:
    if isinstance(module, nn.Linear):
        return torch.tensor(module.out_features)
    reach = torch.tensor(module.out_channels // module.groups)
    pads = module._reversed_padding_repeated_twice
    for axis, size in enumerate(sizes):
        pad = pads[2 * (len(sizes) - 1 - axis) :][:2]
        reach = reach[..., None] * _meetings(module, axis, size, pad)
    return reach


def _meetings(conv: nn.Module, axis: int, size: int, pad: list[int]) -> Tensor:
    """In how many windows along an axis each of ``size`` inputs is; padding is in none itself."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    positions = torch.arange(size, dtype=torch.float32).view(1, 1, size)
    fill = {"value": -1.0} if mode == "constant" else {}
    padded = F.pad(positions, pad, mode, **fill).flatten().long()
    dilation, width = conv.dilation[axis], conv.kernel_size[axis]
    windows = padded.unfold(0, dilation * (width - 1) + 1, conv.stride[axis])[:, ::dilation]
    return torch.bincount(windows[windows >= 0], minlength=size)


class NeuronTally(Tally):
    """A layer of neurons, by what leaves it."""

    facts_of = ("elements",)
    sums_of = ("spikes", "nonzeros")

    def __call__(self, module: nn.Module, args: tuple, out: Tensor) -> None:
        steps = over_time(out.detach(), self.frame, module).flatten(2)
        self.saw(elements=steps.shape[2])
        spikes = summed(_in_units(steps, getattr(module, "spike_height", 1.0)))
        self.frame.fired, self.frame.spikes = True, spikes
        binary = isinstance(module, SpikingNeuron)
        nonzeros = spikes if binary else (steps != 0).sum((1, 2))
        self.add(spikes=spikes, nonzeros=nonzeros)
        self.done(len(steps))

    def record(self, samples: int) -> Neuron:
        spikes, nonzeros = (tuple(self.sums[name].tolist()) for name in self.sums_of)
        numel = self.facts["elements"] * self.facts["steps"] * samples
        return Neuron(self.name, spikes, nonzeros, numel)


def _in_units(x: Tensor, unit: float) -> Tensor:
    return x if unit == 1 else (x / unit).round()


class ProductTally(Tally):
    """q k^T v of q, k, v [T, B, heads, d, N]: a :class:`qkformer.layers.SpikeProduct`."""

    facts_of = ("heads", "d", "e", "tokens", "kv_steps")
    sums_of = ("q", "k", "v", "coincidences", "sums", "squares")

    def __call__(self, module: nn.Module, args: tuple, out: Tensor) -> None:
        # k and v may be means over the steps of q (SFA unrolled)
        units = [self.frame.unit * len(x) / len(args[0]) for x in args]
        q, k, v = (_in_units(x.detach(), unit) for x, unit in zip(args, units, strict=True))
        (heads, d, tokens), e = q.shape[2:], v.shape[3]
        self.saw(heads=heads, d=d, e=e, tokens=tokens, kv_steps=len(k))
        wide = torch.float64
        of_k, of_v = k.sum(3, dtype=wide), v.sum(3, dtype=wide)  # of each token
        scale = (1.0 if module.scale is None else module.scale) * prod(units)
        sums = (out.detach().to(wide) / scale).round().flatten(1)
        self.add(
            q=q.flatten(1).sum(1, dtype=wide).long(),
            k=of_k.flatten(1).sum(1).long(),
            v=of_v.flatten(1).sum(1).long(),
            coincidences=(of_k * of_v).flatten(1).sum(1).long(),
            sums=sums.sum(1).long(),
            squares=(sums * sums).sum(1).long(),
        )
        self.done(len(q))

    def record(self, name: str, kind: str, samples: int) -> ProductAttention:
        facts = self.facts
        total = {key: int(value.sum()) for key, value in self.sums.items()}
        heads, tokens = facts["heads"], facts["tokens"]
        numel, v_numel = (
            facts["steps"] * samples * heads * facts[width] * tokens for width in ("d", "e")
        )
        return ProductAttention(
            layer=name,
            kind=kind,
            heads=heads,
            dim=heads * facts["d"],
            tokens=tokens,
            steps=facts["steps"],
            samples=samples,
            numel=numel,
            q_sum=total["q"],
            k_sum=total["k"],
            sums=Sums(v_numel, total["sums"], total["squares"]),
            v_sum=total["v"],
            v_numel=v_numel,
            kv_coincidences=total["coincidences"],
            kv_steps=facts["kv_steps"],
        )


class MaskTally(Tally):
    """mask * k of q, k [T, B, C, H, W]: a :class:`qkformer.layers.SpikeMask`."""

    facts_of = ("heads", "dim", "tokens", "masks")
    sums_of = ("q", "k", "mask", "masked", "squares")

    def __call__(self, module: nn.Module, args: tuple, out: Tensor) -> None:
        q, k = (_in_units(x.detach(), self.frame.unit) for x in args[:2])
        wide = torch.float64
        sums = module.sums(q).to(wide).flatten(2)
        tokens, dim = prod(q.shape[3:]), q.shape[2]
        self.saw(heads=module.num_heads or 1, dim=dim, tokens=tokens, masks=sums.shape[2])
        self.add(
            q=sums.sum((1, 2)).long(),
            mask=self.frame.spikes,  # its neuron ran last
            k=k.flatten(1).sum(1, dtype=wide).long(),
            masked=_in_units(out.detach(), self.frame.unit).flatten(1).sum(1, dtype=wide).long(),
            squares=(sums * sums).sum((1, 2)).long(),
        )
        self.done(len(q))

    def record(self, name: str, kind: str, samples: int) -> MaskAttention:
        facts = self.facts
        total = {key: int(value.sum()) for key, value in self.sums.items()}
        all_steps = facts["steps"] * samples
        masks = all_steps * facts["masks"]
        return MaskAttention(
            layer=name,
            kind=kind,
            heads=facts["heads"],
            dim=facts["dim"],
            tokens=facts["tokens"],
            steps=facts["steps"],
            samples=samples,
            numel=all_steps * facts["dim"] * facts["tokens"],
            q_sum=total["q"],
            k_sum=total["k"],
            sums=Sums(masks, total["q"], total["squares"]),
            mask_sum=total["mask"],
            mask_numel=masks,
            masked_sum=total["masked"],
        )
