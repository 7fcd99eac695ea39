"""``python -m qkformer.analysis COMMAND``, or ``qkformer COMMAND``."""

import sys
from collections.abc import Sequence

try:
    import matplotlib  # noqa: F401
except ImportError:
    raise SystemExit("error: the commands draw: pip install 'qkformer[analysis]'") from None

from qkformer.analysis import commands, run_commands
from qkformer.commands import dispatch

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
    dispatch("python -m qkformer.analysis", COMMANDS, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
