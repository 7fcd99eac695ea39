"""Training steps of whole networks: throughput, memory, what is saved for backward."""

import sys

from benchmarks.networks import training_step
from benchmarks.options import network_options, parser
from benchmarks.runs import compare_networks


def main(arguments: list[str] | None = None) -> None:
    """The command line; returns when the results are saved and printed."""
    made = parser(__doc__, repeats=5)
    network_options(made)
    arguments = sys.argv[1:] if arguments is None else arguments
    compare_networks("train", training_step, made.parse_args(arguments), arguments)


if __name__ == "__main__":
    main()
