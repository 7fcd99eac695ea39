"""The most images per second that training can reach on a GPU: a bound by bytes moved.

Bytes of one image's training step, forward and backward, of conv -> BatchNorm -> LIF with 2-byte
activations, computed from a trace of the models (224 px and T = 4; CIFAR 32 px; DVS 128 px and
T = 16): 44 bytes per convolution's output if BatchNorm and neuron are separate passes, 21 if they
are fused.
The ceilings are for one H200, 790 TFLOP/s in bf16 and 4.3 TB/s, both measured on one.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ceiling:
    """Of one model: MB moved per image and H200 images/s, unfused and fused."""

    unfused_mb: int
    fused_mb: int
    unfused: int
    fused: int


CEILINGS = {
    "qkformer_10_384": Ceiling(3384, 1738, 1169, 2107),
    "qkformer_10_512": Ceiling(4510, 2316, 828, 1431),
    "qkformer_10_768": Ceiling(6764, 3473, 494, 792),
    "qkformer_4_384": Ceiling(586, 312, 6105, 9973),
    "qkformer_2_256": Ceiling(1143, 644, 3408, 5651),
}
PUBLISHED_SIZE = dict.fromkeys(CEILINGS, (224, 4))  # pixels, T
PUBLISHED_SIZE |= {"qkformer_4_384": (32, 4), "qkformer_2_256": (128, 16)}


def share(model: str, size: int, T: int, machine: str, images_per_second: float) -> float | None:
    """Share of the fused training ceiling, 0 to 1; None where there is no ceiling to compare with.

    Args:
        model: Its registered name, built without arguments of its own.
        size, T: The ceilings are for the published ones.
        machine: As PyTorch names the GPU.
    """
    if (size, T) != PUBLISHED_SIZE.get(model):
        return None
    return images_per_second / CEILINGS[model].fused if "H200" in machine else None
