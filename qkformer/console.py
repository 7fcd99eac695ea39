"""What takes a while says how far it is."""

import sys
import time

from tqdm import tqdm

from qkformer.text import duration

SECONDS_BETWEEN_LINES = 60


class Progress:
    """A bar on a terminal; elsewhere, as in a log file, a plain line every minute.

    Args:
        total: Number of steps.
        label: What is going on.
        unit: What a step is.
        start: How many of them were done before.
        quiet: Say nothing, as all processes but one.

    Leaving its `with` block removes the bar, so that what follows starts on a line of its own.
    """

    def __init__(
        self, total: int, label: str, *, unit: str = "step", start: int = 0, quiet: bool = False
    ) -> None:
        self.total, self.label, self.unit, self.start, self.quiet = total, label, unit, start, quiet
        self.start_time = self.last_line = time.monotonic()
        self.status, self.bar = "", None
        if sys.stdout.isatty() and not quiet:
            self.bar = tqdm(total=total, initial=start, desc=label, leave=False, file=sys.stdout)

    def show(self, done: int, status: str | None = None) -> None:
        """Say that `done` steps are behind us; with a new status at once, else when it is time."""
        now = time.monotonic()
        due = status is not None or now - self.last_line > SECONDS_BETWEEN_LINES
        self.status = self.status if status is None else status
        if self.bar is not None:
            self.bar.set_postfix_str(self.status, refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.quiet and due and done > self.start:
            self.last_line = now
            per_step = (self.last_line - self.start_time) / (done - self.start)
            seconds = per_step * (self.total - done)
            progress = f"{self.unit} {done}/{self.total}, {duration(seconds)} left"
            print(f"{self.label}: {progress}  {self.status}".rstrip(), flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
