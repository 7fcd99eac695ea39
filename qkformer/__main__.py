"""``python -m qkformer COMMAND``, and the console script ``qkformer COMMAND``."""

import sys
from collections.abc import Sequence

from qkformer.commands import dispatch


def export(argv: Sequence[str]) -> None:
    """A trained model as a file for other runtimes or for hardware (qkformer export --help)."""
    from qkformer.export.__main__ import main

    main(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: the export, and the commands of the analysis, which draw."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"export": export}
    if argv[:1] != ["export"]:
        from qkformer.analysis.__main__ import COMMANDS

        commands = COMMANDS | commands
    dispatch("qkformer", commands, argv)


if __name__ == "__main__":
    main()
