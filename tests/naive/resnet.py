"""SEW-ResNet, ResNet-19 (under our names) and the ResNet-18 of QCFS."""

from collections.abc import Callable
from functools import partial

from naive.layers import Act, conv_norm, fire, linear, max_pool, numbered, parts
from naive_qkformer import State
from torch import Tensor


def sew_resnet(state: State, x: Tensor, connection: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    fires = partial(fire, tau=None)
    x = max_pool(fires(conv_norm(state, ("conv1", "bn1"), x, 2)))
    for block in parts(state, r"layer\d\.\d+"):
        pairs = numbered(block, "conv1.module", "conv2.module", "conv3.module")
        pairs = [pair for pair in pairs if f"{pair[0]}.weight" in state]
        y, stride = x, 1 if block.startswith("layer1") or not block.endswith(".0") else 2
        for pair in pairs:
            strides = pair == pairs[len(pairs) - 2]  # a bottleneck's 3x3, a basic block's first
            y = fires(conv_norm(state, pair, y, stride if strides else 1))
        (pair,) = numbered(block, "downsample.0.module")
        shortcut = x
        if f"{pair[0]}.weight" in state:
            shortcut = fires(conv_norm(state, pair, x, stride))
        x = connection(y, shortcut)
    return linear(state, "fc", x.mean((0, 3, 4)))


def resnet19(state: State, x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """Under our names."""

    def layer(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return conv_norm(state, (f"{name}.conv", f"{name}.bn"), x, stride)

    x = act(layer("stages.0.embed", x))
    for name in parts(state, r"stages\.\d\.blocks\.\d+"):
        first = name.endswith(".0")
        stride = 2 if first and not name.startswith("stages.0") else 1
        y = layer(f"{name}.branch.1", act(layer(f"{name}.branch.0", x, stride)))
        x = act(y + (layer(f"{name}.shortcut", x, stride) if first else x))
    hidden = act(linear(state, "head_neuron.0", x.mean((3, 4))))
    return linear(state, "head", hidden.mean(0))


def resnet18(state: State, x: Tensor, act: Act) -> Tensor:
    x = act("conv1.2", conv_norm(state, ("conv1.0", "conv1.1"), x))
    for name in parts(state, r"conv\d_x\.\d+"):
        stride = 1 if name.startswith("conv2_x") or not name.endswith(".0") else 2
        branch, shortcut = f"{name}.residual_function", f"{name}.shortcut"
        y = conv_norm(state, (f"{branch}.0", f"{branch}.1"), x, stride)
        y = conv_norm(state, (f"{branch}.3", f"{branch}.4"), act(f"{branch}.2", y))
        if f"{shortcut}.0.weight" in state:
            x = conv_norm(state, (f"{shortcut}.0", f"{shortcut}.1"), x, stride)
        x = act(f"{name}.act", x + y)
    return linear(state, "fc", x.mean((0, 3, 4)))
