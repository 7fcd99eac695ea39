"""Shared by all tests: the gpu marker, and models whose neurons fire."""

import numpy as np
import pytest
import torch
from synthetic_state import synthetic_state

import qkformer
from qkformer.models import SpikingTransformer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def make_model(name: str, seed: int = 0, **options) -> SpikingTransformer:
    """A float64 model in eval mode with random weights, biases and statistics.

    A fresh model hardly fires behind its first layers, so most properties would hold trivially.
    """
    model = qkformer.create_model(name, **options).double().eval()
    state = model.state_dict()
    # synthetic_state knows a query's BatchNorm by its published name
    shapes = {key.replace(".q.bn.", ".q_bn."): value.shape for key, value in state.items()}
    values = synthetic_state(shapes, seed).values()
    model.load_state_dict(
        {k: torch.from_numpy(np.asarray(v)) for k, v in zip(state, values, strict=True)}
    )
    return model
