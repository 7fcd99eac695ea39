"""``python -m qkformer.analysis COMMAND``, and the console script ``qkformer COMMAND``."""

import sys
from collections.abc import Sequence

try:
    import matplotlib  # noqa: F401
except ImportError:
    raise SystemExit("error: the commands draw: pip install 'qkformer[analysis]'") from None

from qkformer.analysis import commands, run_commands
from qkformer.analysis.source import ERRORS

COMMANDS = {
    "energy": run_commands.energy,
    "rates": run_commands.rates,
    "attention": run_commands.attention,
    "confusion": run_commands.confusion,
    "theory": commands.theory,
    "macs": commands.macs,
    "curves": commands.curves,
    "compare": commands.compare,
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Raises:
        SystemExit: with one line and status 2 where something given is wrong.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print("usage: qkformer COMMAND ... (--help behind a command explains it)\n")
        width = max(map(len, COMMANDS))
        for command, run in COMMANDS.items():
            print(f"  {command:{width}}  {run.__doc__.splitlines()[0]}")
        return
    try:
        if name not in COMMANDS:
            raise commands.unknown(name, COMMANDS)
        COMMANDS[name](argv[1:])
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
