"""Training steps of whole networks: throughput, memory, what is saved for backward."""

from benchmarks.networks import training_step
from benchmarks.runs import compare_networks


def main(arguments: list[str] | None = None) -> None:
    """The command line; returns when the results are saved and printed."""
    compare_networks("train", training_step, description=__doc__, repeats=5, arguments=arguments)


if __name__ == "__main__":
    main()
