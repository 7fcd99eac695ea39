"""The published architectures: registered name and options, golden file, state dict."""

import argparse
import functools
import json
from pathlib import Path

import numpy as np
import torch
from synthetic_state import synthetic_events, synthetic_images, synthetic_state

import qkformer
from qkformer.checkpoint.released import released_names

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
    "spikingformer_8_384__imagenet": ("spikingformer_8_384", {}),
    "spikingformer_8_512__imagenet": ("spikingformer_8_512", {}),
    "spikingformer_8_768__imagenet": ("spikingformer_8_768", {}),
    "spikingformer__cifar10": ("spikingformer_4_384", {}),
    "spikingformer__cifar100": ("spikingformer_4_384", {"num_classes": 100, "num_heads": 8}),
    "spikingformer__cifar10dvs": ("spikingformer_2_256", {}),
    "spikingformer__dvs128gesture": ("spikingformer_2_256", {"num_classes": 11}),
    "cml_spikformer__cifar10": ("cml_spikformer_4_384", {}),
    "cml_spikingformer_8_768__imagenet": ("cml_spikingformer_8_768", {}),
    "cml_spikingformer__cifar10": ("cml_spikingformer_4_384", {}),
    "cml_spikingformer__cifar10dvs": ("cml_spikingformer_2_256", {}),
    "sdt_8_384__imagenet": ("sdt_8_384", {}),
    "sdt_8_512__imagenet": ("sdt_8_512", {}),
    "sdt_8_512_t1__imagenet": ("sdt_8_512", {}),
    "sdt_8_768__imagenet": ("sdt_8_768", {}),
    "sdt__cifar10": ("sdt_2_512", {}),
    "sdt__cifar10dvs": (
        "sdt_2_256",
        {"mixer": "sdsa_pooled", "pools": (False, False, True, True)},
    ),
    "sdt__dvs128gesture": ("sdt_2_256", {"num_classes": 11}),
    "metaspikformer_8_384__imagenet": ("metaspikformer_8_384", {}),
    "metaspikformer_8_512__imagenet": ("metaspikformer_8_512", {}),
    "espikeformer_t__imagenet": ("espikeformer_t", {}),
    "espikeformer_s__imagenet": ("espikeformer_s", {}),
    "espikeformer_m__imagenet": ("espikeformer_m", {}),
    "espikeformer_l__imagenet": ("espikeformer_l", {}),
    "espikeformer_12_512__imagenet": ("espikeformer_12_512", {}),
    "espikeformer_12_768__imagenet": ("espikeformer_12_768", {}),
    "sew_resnet34__imagenet": ("sew_resnet34", {}),
    "sew_resnet101__imagenet": ("sew_resnet101", {}),
    "sew_resnet152__imagenet": ("sew_resnet152", {}),
    "stsa__dvs128gesture": (
        "stsa_2_256",
        {"num_classes": 11, "T": 4, "mlp_drop": 0.0, "stsa": "original"},
    ),
    "qcfs_resnet18__cifar10": ("qcfs_resnet18", {}),
    "mst_swin_t__imagenet": ("mst_swin_t", {}),
}


def published_shapes(case: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / "keys" / f"{case}.json").read_text())


@functools.cache
def golden(case: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{case}.seed0.npz"))


def published_state(case: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Synthetic float64 weights under the published names."""
    membrane = bool(golden(case).get("membrane", 0))
    values = synthetic_state(published_shapes(case), seed, membrane)
    return {key: torch.from_numpy(np.asarray(value)) for key, value in values.items()}


def published_model(case: str, seed: int = 0, **options) -> torch.nn.Module:
    """The model in float64 and eval mode, with the synthetic weights."""
    name, defaults = PUBLISHED[case]
    model = qkformer.create_model(name, **defaults, **options).double().eval()
    state, shapes = published_state(case, seed), model.state_dict()
    names = released_names(model)
    model.load_state_dict(
        {key: state[name].reshape(shapes[key].shape) for key, (name, _) in names.items()}
    )
    return model


def published_input(case: str, seed: int, B: int, T: int, size: int) -> torch.Tensor:
    events = "dvs" in case
    x = synthetic_events(seed, B, T, size) if events else synthetic_images(seed, B, size)
    return torch.from_numpy(x)


def publish(state: dict, case: str, path) -> None:
    """Write a state dict as its family's training script did."""
    args = argparse.Namespace(model=case, lr=6e-4)
    if "dvs" in case:
        content = {"model": state, "optimizer": {}, "lr_scheduler": {}, "epoch": 90, "args": args,
                   "max_test_acc1": 84.0, "test_acc5_at_max_test_acc1": 99.0}  # fmt: skip
    elif case.startswith(("cifar", "spikingformer", "cml", "sdt")):  # timm's saver
        state = {f"module.{key}": value for key, value in state.items()}
        content = {"epoch": 400, "arch": case, "state_dict": state, "optimizer": {}, "version": 2,
                   "args": args, "amp_scaler": {}, "metric": 96.18}  # fmt: skip
    else:
        content = {"model": state, "optimizer": {}, "epoch": 199, "scaler": {}, "args": args}
    torch.save(content, path)
