"""The end of an error message about a name that does not exist."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the nearest known name, empty where none is near."""
    nearest = difflib.get_close_matches(str(name), sorted(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
