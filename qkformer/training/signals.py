"""Signals by which clusters and people stop a run: before training at once, in it after a step."""

import signal
import threading
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(BaseException):
    """A run stopped as it was asked to, nothing is lost; the message is one line.

    Raised wherever the main thread happens to be, and like KeyboardInterrupt no Exception: what
    calls a file damaged at any error in reading it must let it pass.
    """


class StopRequest:
    """While its `with` block runs, stopping signals raise Stopped instead of ending the process.

    From the first one or `remember` on they are remembered only. A second Ctrl-C ends it all the
    same (KeyboardInterrupt). Outside the main thread, which is the only one that Python lets handle
    signals, it does nothing.

    Attributes:
        received: Name of the first signal that came, None before.
    """

    received: str | None = None
    _at_once = True

    def __enter__(self) -> "StopRequest":
        may_handle = threading.current_thread() is threading.main_thread()
        numbers = STOPPING if may_handle else ()
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def remember(self) -> None:
        """From here on there is something to save first."""
        self._at_once = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        is_first, self.received = not self.received, self.received or signal.Signals(number).name
        if self._at_once and is_first:
            raise Stopped(
                f"stopped by {self.received} before training began: the same command goes on"
            )
