"""Shared by all tests: the markers, and models whose neurons fire."""

import numpy as np
import pytest
import torch
from synthetic_state import synthetic_state

import qkformer
from qkformer.models import SpikingTransformer


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skipped = {} if torch.cuda.is_available() else {"gpu": "needs a CUDA device"}
    if "slow" not in config.option.markexpr:
        skipped["slow"] = "another size of what is tested anyhow; -m slow runs it"
    for item in items:
        for marker in skipped.keys() & item.keywords.keys():
            item.add_marker(pytest.mark.skip(reason=skipped[marker]))


def make_model(name: str, seed: int = 0, **options) -> SpikingTransformer:
    """A float64 model in eval mode with random weights, biases and statistics.

    A fresh model hardly fires behind its first layers, so most properties would hold trivially.
    """
    model = qkformer.create_model(name, **options).double().eval()
    state = model.state_dict()
    # synthetic_state knows a query's BatchNorm and a threshold by their published names
    published = {".q.bn.": ".q_bn.", ".theta": ".thresh"}
    shapes = {}
    for key, value in state.items():
        for ours, theirs in published.items():
            key = key.replace(ours, theirs)
        shapes[key] = value.shape
    values = synthetic_state(shapes, seed).values()
    model.load_state_dict(
        {k: torch.from_numpy(np.asarray(v)) for k, v in zip(state, values, strict=True)}
    )
    return model
