"""Forward passes of whole networks without gradients, BatchNorm folded and not."""

import sys

from benchmarks.networks import inference_step
from benchmarks.options import network_options, parser
from benchmarks.runs import compare_networks


def main(arguments: list[str] | None = None) -> None:
    """The command line; returns when the results are saved and printed."""
    made = parser(__doc__, repeats=7)
    network_options(made)
    arguments = sys.argv[1:] if arguments is None else arguments
    compare_networks("inference", inference_step, made.parse_args(arguments), arguments)


if __name__ == "__main__":
    main()
