"""``python -m qkformer.export FORMAT``, or ``qkformer export FORMAT``."""

import sys
from collections.abc import Sequence

from qkformer.commands import dispatch
from qkformer.export.commands import nir, onnx, torch, trace
from qkformer.export.hf import hf

COMMANDS = {"onnx": onnx, "torch": torch, "nir": nir, "trace": trace, "hf": hf}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Raises:
        SystemExit: with one line and status 2 where something given is wrong.
    """
    dispatch("python -m qkformer.export", COMMANDS, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
