"""Kernels that do nothing, where there is no GPU: what would be launched is counted."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from qkformer.neurons.cuda.loader import LAUNCHERS


class NullLauncher:
    """A ``loader.Launcher``.

    Attributes:
        launched: How often each kernel, by name.
    """

    def __init__(self) -> None:
        self.launched: Counter[str] = Counter()

    def unavailable(self) -> None:
        """Nothing is missing."""

    def launch(self, kernel: str, *_arguments, **_more) -> None:
        """Outputs stay as they were allocated."""
        self.launched[kernel] += 1


@contextmanager
def null_launcher(device_type: str) -> Iterator[NullLauncher]:
    """Our kernels seem to run on tensors of this type of device."""
    before = LAUNCHERS.get(device_type)
    LAUNCHERS[device_type] = launcher = NullLauncher()
    try:
        yield launcher
    finally:
        del LAUNCHERS[device_type]
        if before is not None:
            LAUNCHERS[device_type] = before
