"""What a CUDA graph asks of the kernels' Python: a training step reads no tensor's value."""

import copy

import pytest
import torch
from conftest import make_model, with_spikes

READ = (
    "item",
    "tolist",
    "numpy",
    "cpu",
    "nonzero",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
)


def test_a_training_step_reads_no_tensor(host, monkeypatch):
    model = make_model("qkformer_2_256", backend="cupy", T=4, attn_scale=2.0, embed_dim=64).train()
    x = torch.rand(2, 4, model.in_chans, 32, 32).double()
    with_spikes(copy.deepcopy(model), x)
    host.launched.clear()

    def refuse(*_):
        pytest.fail("a GPU would be waited for, and a graph not recorded")

    with monkeypatch.context() as patch:
        for method in READ:
            patch.setattr(torch.Tensor, method, refuse)
        model(x).square().sum().backward()
    assert {"forward", "backward", "reduce", "pooled_forward"} <= set(host.launched)
    assert all(parameter.grad is not None for parameter in model.parameters())
