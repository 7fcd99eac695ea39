"""Forward passes of whole networks without gradients, BatchNorm folded and not."""

from benchmarks.networks import inference_step
from benchmarks.runs import compare_networks


def main(arguments: list[str] | None = None) -> None:
    """The command line; returns when the results are saved and printed."""
    compare_networks(
        "inference", inference_step, description=__doc__, repeats=7, arguments=arguments
    )


if __name__ == "__main__":
    main()
