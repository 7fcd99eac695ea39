"""Equality of what a run leaves, to the bit, and of what a training step leaves."""

import torch

# what differs between two runs of the same kind
VARYING = (
    "seconds",
    "images_per_second",
    "test_images_per_second",
    "data_wait",
    "memory_mib",
    "progress",
)


def assert_same(one, other):
    """Equal to the bit, whatever the nesting; but for what is measured on the way."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - set(VARYING):
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert type(one) is type(other)
        assert one == other


def assert_same_step(one, other):
    """Two modules have the same gradients and state after a training step, to rounding."""
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(one.state_dict(), other.state_dict())
