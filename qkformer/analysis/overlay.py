"""Which maps are drawn over a model's inputs, and the inputs as pictures."""

import numpy as np
import torch
from torch import Tensor, nn

from qkformer.analysis import figures, maps
from qkformer.analysis.measure import is_neuron


def attention_maps(
    model: nn.Module,
    x: Tensor,
    found: dict[str, maps.Operands],
    token: int | None = None,
    layer: str | None = None,
    classes: list[int] | None = None,
) -> dict[str, Tensor]:
    """Maps [B, h, w] by their titles: of every attention, the stages' firing rates, Grad-CAM.

    Networks without attention, or without neurons, have the others.

    Args:
        found: what :func:`maps.attentions` finds on x.
        token: also what this query asks of all, in SSA.
        layer: for Grad-CAM; the last stage if None.
        classes: for Grad-CAM, one per sample; the predicted ones if None.

    Raises:
        AnalysisError: no such token, layer or class.
    """
    drawn = {}
    for name, each in found.items():
        short = figures.short(name)
        mask = each.token_map()
        if mask is not None:
            drawn[f"token mask\n{short}"] = mask
        elif each.v is not None:
            drawn[f"column sums\n{short}"] = each.column_sums()
            if token is not None:
                drawn[f"query {token}\n{short}"] = each.row(token)
    fires = any(map(is_neuron, model.modules()))
    for name in maps.stages(model) if fires else ():
        drawn[f"firing rate\n{name}"] = maps.rate_map(model, x, name).mean(0)
    layer = layer or maps.stages(model)[-1]
    cam, classes = maps.grad_cam(model, x, layer, classes)
    drawn[f"Grad-CAM\n{layer} of {', '.join(map(str, classes))}"] = cam
    return drawn


def pictures(x: Tensor) -> np.ndarray:
    """Inputs of a model as pictures: [B, H, W] grey or [B, H, W, 3], each from 0 to 1.

    Event frames are summed over time and polarity.
    """
    x = x.float().cpu()
    if x.ndim == 5:
        x = x.sum((1, 2))
    elif x.shape[1] == 3:
        x = x.permute(0, 2, 3, 1)
    else:
        x = x.mean(1)
    low, high = (each(x.flatten(1), 1) for each in (torch.amin, torch.amax))
    shape = (-1, *[1] * (x.ndim - 1))
    return ((x - low.view(shape)) / (high - low).clamp(min=1e-6).view(shape)).numpy()
