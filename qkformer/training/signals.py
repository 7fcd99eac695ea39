"""Signals by which clusters and people stop a run: remembered until the step is done."""

import signal
import threading
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(Exception):
    """A run stopped as it was asked to, everything saved; the message is one line."""


class StopRequest:
    """While its `with` block runs, stopping signals are remembered instead of ending the process.

    A second Ctrl-C ends it all the same (KeyboardInterrupt). Outside the main thread, which is the
    only one that Python lets handle signals, it does nothing.

    Attributes:
        received: Name of the first signal that came, None before.
    """

    received: str | None = None

    def __enter__(self) -> "StopRequest":
        may_handle = threading.current_thread() is threading.main_thread()
        numbers = STOPPING if may_handle else ()
        self._before = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
