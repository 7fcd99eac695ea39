"""What train and inference have in common: every batch size, measured, saved, printed."""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
import yaml
from spikingjelly.activation_based.functional import neuron_implementation

from benchmarks import report, roofline
from benchmarks.contenders import contenders
from benchmarks.measure import compare
from benchmarks.networks import Setting
from benchmarks.options import network_options, parser, set_up, threads_label
from benchmarks.results_file import save
from qkformer.training.environment import DTYPES


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
    gpu = None
    # ceilings are of training with 2-byte activations
    if benchmark == "train" and device.type == "cuda" and options.precision in DTYPES:
        gpu = roofline.measured(device, DTYPES[options.precision])
    for batch in _batches(options):
        setting = _setting(options, batch, device)
        rows = compare(
            contenders(setting, step, compiled=options.compile, folded=benchmark == "inference"),
            device,
            repeats=options.repeats,
            memory=not options.no_memory,
            items=batch,
        )
        content = {"rows": rows, "spikingjelly_lif": neuron_implementation("lif", device)}
        if gpu is not None:
            content["gpu"] = asdict(gpu)
            _add_shares(rows, setting, gpu)
        label = setting.label() + threads_label(device)
        save(options.results, benchmark, label, device, arguments, content)
        print(f"\n{label}\n\n{report.comparison(benchmark, rows)}", flush=True)
        if gpu is not None:
            print(f"\n{report.bounds(content)}", flush=True)
        if options.to_memory_limit and all("not_measured" in row for row in rows):
            return


def _add_shares(rows: list[dict[str, Any]], setting: Setting, gpu: roofline.GPU) -> None:
    T = setting.defaults().T
    for row in rows:
        if "per_second" in row and not setting.model_args:
            row["ceiling_share"] = roofline.share(
                setting.model, setting.size, T, gpu, row["per_second"]
            )


def _batches(options: argparse.Namespace) -> Iterator[int]:
    yield from options.batch
    batch = options.batch[-1]
    while options.to_memory_limit:  # the caller stops where nothing fits
        batch *= 2
        yield batch


def _setting(options: argparse.Namespace, batch: int, device: torch.device) -> Setting:
    setting = Setting(
        model=options.model,
        size=0,
        batch=batch,
        precision=options.precision,
        device=device,
        model_args=yaml.safe_load(options.model_args),
    )
    return setting.at(options.size)
