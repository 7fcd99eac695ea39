"""What the command lines of ``qkformer``, its analysis and its export share."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from qkformer.data.source import DataError
from qkformer.files import FileError
from qkformer.text import did_you_mean
from qkformer.training.config import ConfigError

ERRORS = (ConfigError, DataError, FileError)  # whose message is one line


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> None:
        raise ConfigError(message)


def from_one(text: str) -> int:
    """The type of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, got {text}")
    return int(text)


def dispatch(
    program: str,
    commands: Mapping[str, Callable[[Sequence[str]], None]],
    argv: Sequence[str] | None = None,
) -> None:
    """Call the command that a command line begins with, or list them all.

    Args:
        program: what users call.
        commands: by name; the first line of a docstring says what it does.
        argv: sys.argv[1:] unless given.

    Raises:
        SystemExit: with one line and status 2 where something given is wrong.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: {program} COMMAND ... (--help behind a command explains it)\n")
        width = max(map(len, commands))
        for command, run in commands.items():
            print(f"  {command:{width}}  {run.__doc__.splitlines()[0]}")
        return
    try:
        if name not in commands:
            raise ConfigError(f"there is no command {name!r}{did_you_mean(name, commands)}")
        commands[name](rest)
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
