"""``python -m qkformer.studies run FILE --output DIR`` and ``... table DIR``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from qkformer.commands import Parser, from_one
from qkformer.studies.run import run_study
from qkformer.studies.study import read_study
from qkformer.training.config import ConfigError
from qkformer.training.distributed import StopRequest
from qkformer.training.main import errors_in_one_line


def run(options: argparse.Namespace) -> None:
    """Train and test every variant that is not done yet; the same command goes on after a stop."""
    with StopRequest() as stop:
        run_study(
            read_study(options.file),
            options.output,
            seeds=options.seeds,
            only=options.only,
            job=options.job,
            device=options.device,
            stop=stop,
        )


def table(options: argparse.Namespace) -> None:
    """Means and standard deviations of what is finished: study.md, .csv and .png."""
    try:
        from qkformer.studies.table import write_tables
    except ModuleNotFoundError as error:  # nodes that only train may do without matplotlib
        raise ConfigError("tables come with pictures: pip install 'qkformer[analysis]'") from error
    print(write_tables(options.folder, options.output or options.folder, pdf=options.pdf))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Raises:
        SystemExit: with train.py's statuses where something is wrong, failed or was stopped.
    """
    parser = Parser("python -m qkformer.studies", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="run | table")
    made = _command(commands, run)
    made.add_argument("file", type=Path, help="of configs/studies")
    made.add_argument("--output", type=Path, required=True, help="folder of the study")
    made.add_argument("--seeds", type=from_one, default=1, help="runs of every variant (1)")
    made.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these variants")
    made.add_argument("--job", type=_job, default=(0, 1), metavar="I/N",
                      help="the I-th of every N runs, from 0: a job of an array")  # fmt: skip
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    made = _command(commands, table)
    made.add_argument("folder", type=Path, help="of the study")
    made.add_argument("--output", type=Path, help="where to write; the study's folder unless given")
    made.add_argument("--pdf", action="store_true", help="vector pictures instead of PNG")
    with errors_in_one_line("the same command goes on"):
        options = parser.parse_args(argv)
        options.command(options)


def _command(commands: argparse._SubParsersAction, command: object) -> argparse.ArgumentParser:
    made = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
    made.set_defaults(command=command)
    return made


def _job(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, got {text}")
    return int(number), int(of)


if __name__ == "__main__":
    main()
