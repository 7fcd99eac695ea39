"""BatchNorm, max pool, neuron and residual in PyTorch: what the fused kernels are measured by."""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from qkformer.neurons import reference
from qkformer.neurons.cuda import ops


@dataclass
class Problem:
    """Inputs of one fused operation. ``x`` is [T * B, C, H, W], or [B, C, H, W] if repeated."""

    x: Tensor
    grad: Tensor
    weight: Tensor | None
    bias: Tensor | None
    conv_bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    residual: Tensor | None
    learned: Tensor | None
    neuron: dict
    steps: int
    repeated: bool
    pool: bool
    training: bool
    eps: float = 1e-5

    def to(self, dtype_or_device: torch.dtype | str) -> "Problem":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(dtype_or_device) for k, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    @property
    def differentiable(self) -> dict[str, Tensor]:
        named = dict(x=self.x, weight=self.weight, bias=self.bias, learned=self.learned)
        named |= dict(conv_bias=self.conv_bias, residual=self.residual)
        return {k: v.detach().requires_grad_() for k, v in named.items() if v is not None}


def random_problem(
    shape: tuple[int, ...],
    *,
    steps: int,
    kind: str,
    dtype: torch.dtype,
    last: bool = False,
    repeated: bool = False,
    pool: bool = False,
    training: bool = True,
    affine: bool = True,
    conv_bias: bool = False,
    residual: bool = False,
    seed: int = 0,
) -> Problem:
    """``shape`` is [B, C, H, W]. Statistics far from 0 and 1, weights of both signs."""
    generator = torch.Generator().manual_seed(seed)
    real = reference.membrane_dtype(dtype)
    b, c, h, w = shape
    rows = b if repeated else b * steps

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    layout = torch.channels_last if last else torch.contiguous_format
    x = (normal(rows, c, h, w) * 2 + normal(c, 1, 1) * 3).to(dtype).contiguous(memory_format=layout)
    out = (b * steps, c, -(-h // 2), -(-w // 2)) if pool else (b * steps, c, h, w)
    return Problem(
        x=x,
        grad=normal(*out).to(dtype),
        weight=(normal(c) * 0.5 + 1).to(real) if affine else None,
        bias=(normal(c) * 0.3 + 0.5).to(real) if affine else None,
        conv_bias=normal(c).to(real) if conv_bias else None,
        running_mean=normal(c).to(real),
        running_var=(normal(c).abs() + 1).to(real),
        residual=normal(*out).mul(3).round().to(dtype) if residual else None,
        learned=torch.tensor(0.4, dtype=real) if kind == "plif" else None,
        neuron=dict(v_threshold=0.8, v_reset=-0.1, alpha=3.0)
        | ({} if kind == "plif" else {"reciprocal_tau": 0.6 if kind == "lif" else None}),
        steps=steps,
        repeated=repeated,
        pool=pool,
        training=training,
    )


def currents(
    p: Problem,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    conv_bias: Tensor | None,
) -> Tensor:
    """[T, B, C, H', W'] as it enters the neuron."""
    if conv_bias is not None:
        x = (x + conv_bias[:, None, None]).to(x.dtype)
    # the buffers are updated in place, so they are copies
    statistics = (p.running_mean.clone(), p.running_var.clone())
    z = F.batch_norm(x, *statistics, weight, bias, p.training, eps=p.eps)
    if p.pool:
        z = F.max_pool2d(z, 3, 2, 1)
    return z.unsqueeze(0).expand(p.steps, *z.shape) if p.repeated else z.unflatten(0, (p.steps, -1))


def plain(p: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients, one module after the other."""
    leaves = p.differentiable
    z = currents(p, leaves["x"], *(leaves.get(k) for k in ("weight", "bias", "conv_bias")))
    tau = {"reciprocal_tau": leaves["learned"]} if p.learned is not None else {}
    out = reference.spike_sequence(z, **p.neuron, **tau).flatten(0, 1)
    if p.residual is not None:
        out = leaves["residual"] + out
    return out.detach(), _gradients(out, leaves, p.grad)


def fused(p: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of the kernels."""
    leaves = p.differentiable
    tau = {"reciprocal_tau": leaves.pop("learned")} if p.learned is not None else {}
    x, inputs = leaves.pop("x"), dict(leaves)
    (out,) = ops.bn_neuron(
        x,
        table=table(p),
        **inputs,
        **p.neuron,
        **tau,
        steps=p.steps,
        repeated=p.repeated,
        pool=p.pool,
        batch_statistics=p.training,
    )
    leaves |= dict(x=x) | ({"learned": tau["reciprocal_tau"]} if tau else {})
    return out.detach(), _gradients(out, leaves, p.grad)


def table(p: Problem) -> Tensor:
    """BatchNorm's map, as the kernels make it."""
    parameters = p.weight, p.bias, p.conv_bias
    if p.training:
        return ops.batch_norm(p.x, *parameters, [], [], [], p.eps, 0.1, 1)
    return ops.fixed_norm(*parameters, [p.running_mean], [p.running_var], p.eps)


def margin(p: Problem) -> Tensor:
    """How near each neuron's membrane comes to the threshold in any step: [B, C, H', W']."""
    neuron = dict(p.neuron)
    tau = p.learned if p.learned is not None else neuron.pop("reciprocal_tau")
    neuron.pop("reciprocal_tau", None)
    z = currents(p, p.x, p.weight, p.bias, p.conv_bias)
    v = torch.full_like(z[0], neuron["v_reset"])
    least = torch.full_like(z[0], float("inf"))
    for current in z:
        h = v + (current if tau is None else (current - (v - neuron["v_reset"])) * tau)
        least = torch.minimum(least, (h - neuron["v_threshold"]).abs())
        _, v = reference.step(current, v, reciprocal_tau=tau, **neuron)
    return least


def _gradients(out: Tensor, leaves: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    return dict(zip(leaves, torch.autograd.grad(out, leaves.values(), grad), strict=True))


def agree(p: Problem) -> None:
    """Against float64: the same spikes where the threshold is not within rounding, and gradients
    that are as near as rounding allows, and no farther than those of PyTorch's modules."""
    dtype, real = p.x.dtype, reference.membrane_dtype(p.x.dtype)
    unit, last_place = torch.finfo(real).eps, torch.finfo(dtype).eps
    safe = (margin(p.to(torch.float64)) > 200 * unit).repeat(p.steps, 1, 1, 1)
    assert safe.float().mean() > 0.95
    p.grad = p.grad * safe
    expected, exact = plain(p.to(torch.float64))
    got, grads = fused(p)
    assert got.dtype == dtype
    assert torch.equal(got[safe].double(), expected[safe])
    modules = plain(p)[1]
    for name, gradient in grads.items():
        error = (gradient.double() - exact[name]).abs()
        scale = exact[name].abs().max().item()
        if name in ("learned", "conv_bias"):  # sums over neurons, whose terms nearly cancel
            scale += exact["x"].abs().sum().item()
        # what reaches every element through the sums of BatchNorm, and the element's own rounding
        assert error.max() <= (100 * unit + last_place) * (scale + 1e-3), name
        theirs = (modules[name].double() - exact[name]).abs()
        assert error.mean() <= 2 * theirs.mean() + 100 * unit * scale, name
