"""What train and inference have in common: every batch size, measured, saved, printed."""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import yaml

from benchmarks import report, roofline
from benchmarks.measure import compare
from benchmarks.networks import Setting, contenders
from benchmarks.options import network_options, parser, set_up, threads_label
from benchmarks.results_file import machine_name, save


def compare_networks(
    benchmark: str,
    step: Callable,
    *,
    description: str,
    repeats: int,
    arguments: list[str] | None,
) -> None:
    """The command line of train and inference: measure at every batch size, save, print.

    Args:
        benchmark: "train" or "inference".
        step: training_step or inference_step.
        description: For --help.
        repeats: Timed rounds, unless the command line says otherwise.
        arguments: The command line; None for the program's own.
    """
    made = parser(description, repeats=repeats)
    network_options(made)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = made.parse_args(arguments)
    device = set_up(options)
    if options.to_memory_limit and device.type == "cpu":
        raise SystemExit("--to_memory_limit is for GPUs: on a CPU it would fill the machine")
    for batch in _batches(options):
        setting = _setting(options, batch, device)
        rows = compare(
            contenders(setting, step, compiled=options.compile, folded=benchmark == "inference"),
            device,
            repeats=options.repeats,
            memory=not options.no_memory,
            items=batch,
        )
        if benchmark == "train":
            T = setting.defaults().T
            for row in rows:
                if "per_second" in row and not setting.model_args:
                    row["ceiling_share"] = roofline.share(
                        setting.model, setting.size, T, machine_name(device), row["per_second"]
                    )
        label = setting.label() + threads_label(device)
        save(options.results, benchmark, label, device, arguments, {"rows": rows})
        print(f"\n{label}\n\n{report.comparison(benchmark, rows)}", flush=True)
        if options.to_memory_limit and all("not_measured" in row for row in rows):
            return


def _batches(options: argparse.Namespace) -> Iterator[int]:
    yield from options.batch
    batch = options.batch[-1]
    while options.to_memory_limit:  # the caller stops where nothing fits
        batch *= 2
        yield batch


def _setting(options: argparse.Namespace, batch: int, device: torch.device) -> Setting:
    setting = Setting(
        model=options.model,
        size=options.size,
        batch=batch,
        precision=options.precision,
        device=device,
        model_args=yaml.safe_load(options.model_args),
    )
    own_size = setting.defaults().default_cfg["input_size"][-1]
    return replace(setting, size=options.size or own_size)
