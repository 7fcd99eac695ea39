"""The published architectures: registered name and options, golden file, state dict."""

import json
from pathlib import Path

import numpy as np
import torch
from synthetic_state import synthetic_events, synthetic_images, synthetic_state

GOLDEN = Path(__file__).parent / "golden"
# golden file -> registered model and what its published counterpart sets
PUBLISHED = {
    "imagenet_hst_10_384": ("qkformer_10_384", {}),
    "imagenet_hst_10_512": ("qkformer_10_512", {}),
    "imagenet_hst_10_768": ("qkformer_10_768", {}),
    "cifar10_hst_4_384": ("qkformer_4_384", {}),
    "cifar100_hst_4_384": ("qkformer_4_384", {"num_classes": 100}),
    "cifar10dvs_hst_2_256": ("qkformer_2_256", {}),
    "dvs128gesture_hst_2_256": ("qkformer_2_256", {"num_classes": 11, "mlp_ratio": 4.0}),
    "ms_qkformer_10_384__imagenet": ("ms_qkformer_10_384", {}),
    "ms_qkformer_10_768__imagenet": ("ms_qkformer_10_768", {}),
    "ms_qkformer__cifar10": ("ms_qkformer_4_384", {}),
    "maxformer_10_384__imagenet": ("maxformer_10_384", {}),
    "maxformer_10_512__imagenet": ("maxformer_10_512", {}),
    "maxformer_10_768__imagenet": ("maxformer_10_768", {}),
    "maxformer__cifar10": ("maxformer_4_384", {}),
    "maxformer__cifar10dvs": ("maxformer_2_256", {}),
    "maxformer__dvs128gesture": ("maxformer_2_256", {"num_classes": 11}),
    "spikformer__cifar10": ("spikformer_4_384", {}),
    "spikformer__cifar10dvs": ("spikformer_2_256", {}),
    "spikformer__imagenet": ("spikformer_8_512", {}),
}


def published_shapes(case: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / "keys" / f"{case}.json").read_text())


def published_state(case: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Synthetic float64 weights under the published names."""
    values = synthetic_state(published_shapes(case), seed)
    return {key: torch.from_numpy(np.asarray(value)) for key, value in values.items()}


def published_input(case: str, seed: int, B: int, T: int, size: int) -> torch.Tensor:
    events = "dvs" in case
    x = synthetic_events(seed, B, T, size) if events else synthetic_images(seed, B, size)
    return torch.from_numpy(x)
