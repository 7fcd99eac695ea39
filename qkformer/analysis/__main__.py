"""``python -m qkformer.analysis COMMAND``, or ``qkformer COMMAND``."""

from functools import partial

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


main = partial(dispatch, "python -m qkformer.analysis", COMMANDS)

if __name__ == "__main__":
    main()
