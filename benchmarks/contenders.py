"""Who takes part: SpikingJelly's QKFormer and ours, in every configuration that may be fastest."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

from torch import nn

from benchmarks.measure import Contender
from benchmarks.networks import PEERS, Setting, our_network, peer_network, training_step
from qkformer.layers.conv_bn_neuron import FEW_CHANNELS

LAST, FOLDED, ADAMW = {"channels_last": True}, {"folded": True}, {"optimizer": True}
COMPILED, GRAPHED = {"compiled": True}, {"graphed": True}
LABELS = {"folded": "folded", "channels_last": "channels_last", "compiled": "compiled"}
LABELS |= {"optimizer": "with AdamW", "graphed": "CUDA graph"}
Variant = tuple[Callable[[Setting], nn.Module], dict[str, Any]]


def contenders(
    setting: Setting, step: Callable, *, compiled: bool, folded: bool
) -> list[Contender]:
    """SpikingJelly first, then ours; what holds a CUDA graph last.

    Args:
        setting: What they share.
        step: training_step or inference_step.
        compiled: Add torch.compile of both.
        folded: Add ours with BatchNorm folded; else, in training, both with AdamW.
    """
    on_gpu = setting.device.type == "cuda"
    variants = _peers(on_gpu, compiled, folded) + _ours(on_gpu, compiled, folded)
    made = []
    for network, differing in sorted(variants, key=_held):
        own = replace(setting, **differing)
        peer = network is peer_network
        missing = _missing(own, step) if peer else None
        make = None if missing else partial(step, network, own)
        made.append(Contender(_name(network, differing), make, missing, peer, own.graphed))
    return made


def _held(variant: Variant) -> int:
    """How much of the memory it keeps, in order: what comes last is the first to give way."""
    network, differing = variant
    return 0 if "graphed" not in differing else 2 if network is peer_network else 1


def _peers(on_gpu: bool, compiled: bool, folded: bool) -> list[Variant]:
    """All that SpikingJelly's own trainer can do: eager, compiled, as a CUDA graph."""
    kinds = [{}, LAST]
    if not folded:
        kinds += [LAST | ADAMW]
    if compiled:
        kinds += [COMPILED, LAST | COMPILED]
    if on_gpu:
        kinds += [LAST | GRAPHED if folded else LAST | ADAMW | GRAPHED]
    return [(peer_network, kind) for kind in kinds]


def _ours(on_gpu: bool, compiled: bool, folded: bool) -> list[Variant]:
    """On CuPy's kernels in inference always folded; on a CPU one row that says what lacks."""
    cupy = {"backend": "cupy"} | (FOLDED if folded else {})
    kinds = [{}, LAST]
    if folded:
        kinds += [FOLDED, FOLDED | LAST]
    if compiled:
        kinds += [COMPILED]
    kinds += [cupy]
    if on_gpu:
        kinds += [cupy | LAST]
        if compiled:
            kinds += [cupy | COMPILED, cupy | LAST | COMPILED]
    if not folded:
        kinds += [(cupy if on_gpu else {}) | LAST | ADAMW]
    if on_gpu:
        graphs = [cupy, cupy | LAST] if folded else [cupy | LAST | ADAMW]
        kinds += [kind | GRAPHED for kind in graphs]
    return [(our_network, kind) for kind in kinds]


def _name(network: Callable, differing: dict[str, Any]) -> str:
    """Whose, and how it differs."""
    whose = f"SpikingJelly {version('spikingjelly')}"
    if network is our_network:
        whose = f"ours, {differing.get('backend', 'torch')}"
    return ", ".join([whose, *(label for key, label in LABELS.items() if key in differing)])


def _missing(setting: Setting, step: Callable) -> str | None:
    """Why SpikingJelly's network cannot be measured so, if it cannot."""
    if setting.model not in PEERS:
        return f"SpikingJelly has no {setting.model}"
    stem_channels = setting.model_args.get("embed_dim", PEERS[setting.model][0]) // 8
    channels_last = setting.channels_last or setting.compiled
    on_cpu = setting.device.type == "cpu"
    if step is training_step and on_cpu and channels_last and stem_channels < FEW_CHANNELS:
        return f"oneDNN's gradients are wrong for {stem_channels} channels, see SampledConv2d"
    return None
