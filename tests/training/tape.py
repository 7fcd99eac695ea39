"""A CUDA graph's stand-in on the CPU: operations recorded once, and done again on the same memory.

As of a graph, no Python runs when it is replayed, every value that is no tensor stays what it was,
and recording changes nothing.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qkformer.text import one_line
from qkformer.training.graph import CaptureError

# what makes the CPU wait for a GPU: its results are numbers or sizes
READ = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2")


def tensors(*trees):
    return [x for x in tree_leaves(trees) if isinstance(x, torch.Tensor)]


class Tape(TorchDispatchMode):
    """Records while it is entered."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.known = set()  # memory by address, all of it kept so that no address returns
        self.before = []  # what was there, and its content

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket.__name__ in READ:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for storage in map(torch.Tensor.untyped_storage, tensors(args, kwargs)):
            if storage.data_ptr() not in self.known:
                self.known.add(storage.data_ptr())
                self.before.append((storage, storage.clone()))
        results = function(*args, **kwargs)
        fresh = set()
        for result in tensors(results):
            address = result.untyped_storage().data_ptr()
            if address not in self.known:
                self.known.add(address)
                fresh.add(id(result))
        self.calls.append((function, args, kwargs, results, fresh))
        return results

    def undo(self):
        for storage, content in self.before:
            storage.copy_(content)

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, results, fresh in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tensors(results), tensors(again), strict=True):
                if id(old) in fresh:
                    old.copy_(new)


def aside(function, device):
    return function()


def capture(function, device):
    """As qkformer.training.graph's."""
    tape, random_numbers = Tape(), torch.get_rng_state()
    try:
        with tape:
            results = function()
    except RuntimeError as error:
        raise CaptureError(one_line(error)) from error
    finally:
        tape.undo()
        torch.set_rng_state(random_numbers)

    def replay():
        tape.replay()
        return results

    return replay
