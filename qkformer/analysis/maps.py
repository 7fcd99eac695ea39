"""What a model looks at: masks, products, firing rates and gradients as maps of the image.

Every function runs the model once on a batch x (images [B, C, H, W] or frames [B, T, C, H, W]) and
leaves it as it was. Maps are float32 on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkformer.data.source import DataError
from qkformer.layers.attention import SpikeMask, SpikeProduct


class AnalysisError(DataError):
    """What was asked for is not in the model; the message is one line."""


@dataclass(frozen=True)
class Operands:
    """What an attention computed.

    Attributes:
        kind: class of the attention.
        q, k: spikes [T, B, heads, d, N].
        v: likewise, or None.
        mask: [T, B, heads, 1, N] of tokens, [T, B, heads, d, 1] of channels, or None.
        size: height and width, whose product is N.
    """

    kind: str
    q: Tensor
    k: Tensor
    v: Tensor | None
    mask: Tensor | None
    size: tuple[int, int]

    def token_map(self) -> Tensor | None:
        """Token mask as a map in [0, 1]: mean over T and heads, [B, h, w]; None without one."""
        if self.mask is None or self.mask.shape[3] != 1:
            return None
        return self.mask.mean((0, 2, 3)).unflatten(-1, self.size)

    def channel_mask(self) -> Tensor | None:
        """Share of the time steps in which a channel passes, [B, C]; None without such a mask."""
        if self.mask is None or self.mask.shape[4] != 1:
            return None
        return self.mask.mean(0).flatten(1)

    def column_sums(self) -> Tensor:
        """How much all queries ask of each token: sum_i q_i . k_j, mean over T and heads,
        [B, h, w]."""
        sums = (self.q.sum(-1, keepdim=True) * self.k).sum(3)
        return sums.mean((0, 2)).unflatten(-1, self.size)

    def row(self, token: int) -> Tensor:
        """What one query asks of each token: q_i . k_j, mean over T and heads, [B, h, w].

        Raises:
            AnalysisError: there is no such token.
        """
        tokens = self.q.shape[-1]
        if not 0 <= token < tokens:
            raise AnalysisError(f"there is no token {token}; there are {tokens}, 0 to {tokens - 1}")
        products = (self.q[..., token, None] * self.k).sum(3)
        return products.mean((0, 2)).unflatten(-1, self.size)

    def matrices(self, sample: int = 0, step: int = 0, head: int = 0) -> dict[str, Tensor]:
        """The paper's figure: channels of a head against tokens, [d, N] each, and the mask.

        Q, K, A_t (or A_c), X' of Q-K attention; Q, K, V and the map Q^T K [N, N] of SSA.
        """
        at = (step, sample, head)
        found = {"Q": self.q[at], "K": self.k[at]}
        if self.mask is not None:
            name = "A_t" if self.mask.shape[3] == 1 else "A_c"
            return found | {name: self.mask[at], "X'": self.mask[at] * self.k[at]}
        return found | {"V": self.v[at], "Q^T K": self.q[at].mT @ self.k[at]}


@torch.no_grad()
def attentions(model: nn.Module, x: Tensor) -> dict[str, Operands]:
    """Operands of every attention, by the path of its module; none of a network without any."""
    names = [n for n, m in model.named_modules() if isinstance(m, SpikeMask | SpikeProduct)]
    owners = [name.rpartition(".")[0] for name in names]
    with _seen(model, names) as calls, _seen(model, owners) as outer:
        model(x)
    found = {}
    for name, owner in zip(names, owners, strict=True):
        operation, (args, _) = model.get_submodule(name), calls[name]
        size = tuple(outer[owner][0][0].shape[-2:])
        kind = type(model.get_submodule(owner)).__name__
        if isinstance(operation, SpikeProduct):
            found[owner] = Operands(kind, *(each.float().cpu() for each in args), None, size)
            continue
        q, k, neuron = args
        mask = neuron(operation.sums(q))  # again: neurons keep no state
        heads = operation.num_heads or 1
        q, k = (each.flatten(3).unflatten(2, (heads, -1)).float().cpu() for each in (q, k))
        over_tokens = operation.num_heads is not None
        shape = (*q.shape[:3], 1, -1) if over_tokens else (*q.shape[:3], -1, 1)
        found[owner] = Operands(kind, q, k, None, mask.float().cpu().reshape(shape), size)
    return found


def stages(model: nn.Module) -> list[str]:
    """Paths of the modules whose outputs are the stages', as timm's models name them.

    Raises:
        AnalysisError: it is no such model.
    """
    info = getattr(model, "feature_info", None)
    if not info:
        raise AnalysisError(f"{type(model).__name__} names no stages; name the layers")
    return [each["module"] for each in info]


@torch.no_grad()
def rate_map(model: nn.Module, x: Tensor, layer: str) -> Tensor:
    """Mean over channels of a layer's output [T, B, C, h, w]: [T, B, h, w].

    Raises:
        AnalysisError: no such layer, or its output has other axes.
    """
    with _seen(model, [layer]) as calls:
        model(x)
    return _maps(calls[layer][1], layer).mean(2).float().cpu()


def grad_cam(
    model: nn.Module, x: Tensor, layer: str, classes: list[int] | None = None
) -> tuple[Tensor, list[int]]:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of a layer's output, per time step, then the mean.

    Spikes have no gradient; these are the surrogate's, with which the model was trained.

    Args:
        classes: one per sample; None for those that the model predicts.

    Returns:
        [B, h, w] >= 0, and the classes.

    Raises:
        AnalysisError: no such layer or class.
    """
    with _seen(model, [layer]) as calls, torch.enable_grad():
        logits = model(x.detach().requires_grad_())
        output = _maps(calls[layer][1], layer)
        if classes is None:
            classes = logits.argmax(1).tolist()
        if not all(0 <= label < logits.shape[1] for label in classes):
            raise AnalysisError(f"classes are 0 to {logits.shape[1] - 1}, got {classes}")
        chosen = logits[range(len(classes)), classes].sum()
        (gradient,) = torch.autograd.grad(chosen, output)
    weights = gradient.mean((3, 4), keepdim=True)
    cam = (weights * output.detach()).sum(2).relu().mean(0)
    return cam.float().cpu(), classes


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, h, w] -> [B, *size], bilinear."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _maps(output: Tensor, layer: str) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 5:
        raise AnalysisError(f"the output of {layer} is no [T, B, C, h, w]")
    return output


@contextmanager
def _seen(model: nn.Module, names: list[str]) -> Iterator[dict[str, tuple[tuple, Tensor]]]:
    """Inputs and outputs of these modules, in evaluation mode."""
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise AnalysisError(f"there is no layer {name!r} in {type(model).__name__}")
    calls: dict[str, tuple[tuple, Tensor]] = {}
    modes = [(module, module.training) for module in modules.values()]
    handles = [
        modules[name].register_forward_hook(
            lambda _module, args, out, name=name: calls.update({name: (args, out)})
        )
        for name in names
    ]
    model.eval()
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
