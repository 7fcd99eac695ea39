"""Words for people: errors in a line, lists that stay short, names that were meant, durations."""

import difflib
from collections.abc import Iterable, Sequence


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_sentence(error: BaseException) -> str:
    """What an error of the system or of a library says first, 200 characters at the most."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    sentence = str(error).strip().partition("\n")[0].partition(". ")[0]
    return sentence[:200].strip() or type(error).__name__


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``, did you mean 'x'?``, to end an error with; empty where nothing known is similar.

    Args:
        name: What there is not.
        known: What there is. Of dotted names, the right last part counts more than all else.
    """
    known, name = list(known), str(name).lstrip("-")
    by_last_part = {key.rpartition(".")[2]: key for key in reversed(known)}  # the first one wins
    last_part = name.rpartition(".")[2]
    close = [by_last_part[last_part]] if last_part in by_last_part else []
    close += difflib.get_close_matches(name, known, n=1)
    close += [by_last_part[key] for key in difflib.get_close_matches(last_part, by_last_part, n=1)]
    return f", did you mean {close[0]!r}?" if close else ""


def duration(seconds: float) -> str:
    """75 -> "1m15s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
