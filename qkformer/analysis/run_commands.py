"""Commands on a checkpoint and its test set: energy, rates, attention, confusion.

They take test.py's command line (--config, --checkpoint, --output, dotted keys, ...) and options
of their own.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkformer.analysis import conventions, figures, maps, tables
from qkformer.analysis import rates as firing
from qkformer.analysis.commands import into, parser
from qkformer.analysis.confusion import confusion_matrix
from qkformer.analysis.log import write_energy
from qkformer.analysis.measure import measure
from qkformer.analysis.measurement import Measurement
from qkformer.analysis.overlay import attention_maps, pictures
from qkformer.analysis.published import beside
from qkformer.analysis.source import Source, opened
from qkformer.analysis.theory import statistics
from qkformer.commands import from_one
from qkformer.files import write_text
from qkformer.training.model import count_parameters

EPILOG = "All other options are test.py's: --config FILE --checkpoint PATH --output DIR --KEY VALUE"


def _parser(command: str, doc: str) -> argparse.ArgumentParser:
    return parser(command, doc, EPILOG)


@contextmanager
def _source(made: argparse.ArgumentParser, argv: Sequence[str]) -> Iterator[tuple[Any, Source]]:
    options, rest = made.parse_known_args(argv)
    with opened(rest) as source:
        yield options, source


def measured_on(source: Source, batches: int | None = None) -> Measurement:
    """Energy and rates of a source; of this many batches of each process, or all."""
    inputs = (x for x, _ in islice(source.batches(), batches))
    return measure(source.model, inputs, world=source.world)


def energy(argv: Sequence[str]) -> None:
    """What a checkpoint costs on the test set, in every convention, beside published numbers."""
    made = _parser("energy", energy.__doc__)
    made.add_argument("--batches", type=from_one, help="of each process; all unless given")
    with _source(made, argv) as (options, source):
        measured = measured_on(source, options.batches)
        if not source.world.is_main:
            return
        print(measured.table())
        convention, here = "qkformer", measured.energy()["qkformer"]["mJ"]
        if not measured.neurons:
            convention, here = "4.6 pJ x MACs", measured.ann()["mJ"]
        for row in beside(measured):
            print(
                f"\npublished {row['energy_mJ']} mJ ({row['system']}, convention "
                f"{row['convention']}, ssa {row.get('ssa')}; {row['source']}) / from this "
                f"checkpoint {here:.4g} mJ / convention {convention}, ssa {source.ssa}"
            )
        facts = {
            "data": source.config.data.name,
            "ssa": source.ssa,
            "parameters": count_parameters(source.model),
            "checkpoint": str(source.checkpoint),
            "published": beside(measured),
        }
        folder = into(source.output)
        write_energy(measured, folder, **facts)
        parts = {name: measured.breakdown(name) for name in conventions.CONVENTIONS}
        figures.draw(figures.energy_bars(parts), folder / "energy", pdf=options.pdf)


def rates(argv: Sequence[str]) -> None:
    """Firing rates as the paper's table and by time step; the attention's sums beside theory."""
    made = _parser("rates", rates.__doc__)
    made.add_argument("--batches", type=from_one, help="of each process; all unless given")
    with _source(made, argv) as (options, source):
        measured = measured_on(source, options.batches)
        if not measured.neurons:
            raise maps.AnalysisError(f"rates: {measured.model} has no neurons")
        if not source.world.is_main:
            return
        folder, steps = into(source.output), firing.by_step(measured)
        table, sums = firing.table(measured), statistics(measured)
        print(tables.text(table), tables.text(sums), *measured.remarks, sep="\n\n")
        figures.save(figures.rates(steps), folder / "rates", steps, pdf=options.pdf)
        write_text(folder / "rates_table.csv", tables.as_csv(table))
        write_text(folder / "statistics.csv", tables.as_csv(sums))
        everything = {"table": table, "by_step": steps, "statistics": sums,
                      "samples": measured.samples}  # fmt: skip
        write_text(folder / "rates.json", json.dumps(everything, indent=1) + "\n")


def attention(argv: Sequence[str]) -> None:
    """What a checkpoint looks at: masks, products, firing rates, Grad-CAM; the paper's matrices."""
    made = _parser("attention", attention.__doc__)
    made.add_argument("--images", nargs="+", help="files, in place of samples of the test set")
    made.add_argument("--samples", type=from_one, default=4, help="first samples of the test set")
    made.add_argument("--layer", help="for Grad-CAM; the last stage unless given")
    made.add_argument("--classes", type=int, nargs="+", help="for Grad-CAM; the predicted ones")
    made.add_argument("--token", type=int, help="also what this query token asks of all, in SSA")
    made.add_argument("--step", type=int, default=-1, help="time step of the matrices, -1 the last")
    made.add_argument("--head", type=int, default=0, help="head of the matrices")
    with _source(made, argv) as (options, source):
        if not source.world.is_main:
            return
        if options.images:
            x = source.images(options.images)
            titles = [Path(file).name for file in options.images]
        else:
            x, labels = _first(source, options.samples)
            titles = [source.data.inputs.class_names[label] for label in labels]
        found = maps.attentions(source.model, x)
        matrices = _matrices(found, options)
        drawn = attention_maps(
            source.model, x, found, options.token, options.layer, options.classes
        )
        size = tuple(x.shape[-2:])
        arrays = {name: maps.enlarged(values, size).numpy() for name, values in drawn.items()}
        folder = into(source.output)
        numbers = {name: values.tolist() for name, values in drawn.items()}
        channels = {name: each.channel_mask() for name, each in found.items()}
        numbers |= {f"{k} channels": v.tolist() for k, v in channels.items() if v is not None}
        figures.save(figures.overlays(pictures(x), arrays, titles), folder / "attention", numbers,
                     pdf=options.pdf)  # fmt: skip
        if matrices:
            numbers = {k: {n: m.tolist() for n, m in each.items()} for k, each in matrices.items()}
            figures.save(figures.matrices(matrices), folder / "matrices", numbers, pdf=options.pdf)
        files = "attention, matrices" if matrices else "attention"
        print(f"{len(drawn)} maps of {len(x)} samples in {folder}: {files}")


def _matrices(
    found: dict[str, maps.Operands], options: argparse.Namespace
) -> dict[str, dict[str, np.ndarray]]:
    """Of the first sample, for the first attention of each stage."""
    firsts = {}
    for name, each in found.items():
        firsts.setdefault(name.partition(".blocks")[0], (name, each))
    chosen = {}
    for name, each in firsts.values():
        steps, _, heads = each.k.shape[:3]
        if not (-steps <= options.step < steps and 0 <= options.head < heads):
            raise maps.AnalysisError(
                f"--step {options.step} --head {options.head}: {name} has {steps} steps and "
                f"{heads} heads"
            )
        matrices = each.matrices(0, options.step, options.head)
        chosen[name] = {key: value.numpy() for key, value in matrices.items()}
    return chosen


def _first(source: Source, samples: int) -> tuple[Tensor, list[int]]:
    inputs, labels = [], []
    for x, y in source.batches():
        inputs.append(x)
        labels += y.tolist()
        if len(labels) >= samples:
            break
    return torch.cat(inputs)[:samples], labels[:samples]


def confusion(argv: Sequence[str]) -> None:
    """Which classes are taken for which, and the accuracy of each."""
    made = _parser("confusion", confusion.__doc__)
    with _source(made, argv) as (options, source):
        classes = source.data.num_classes
        counts = confusion_matrix(source.model, source.batches(), classes, source.world)
        if not source.world.is_main:
            return
        names = source.data.inputs.class_names
        rows = [
            {"class": name, "samples": int(row.sum()),
             "accuracy": 100 * int(row[i]) / max(int(row.sum()), 1),
             **dict(zip(names, row.tolist(), strict=True))}
            for i, (name, row) in enumerate(zip(names, counts, strict=True))
        ]  # fmt: skip
        print(tables.text([{k: row[k] for k in ("class", "samples", "accuracy")} for row in rows]))
        total = 100 * counts.diagonal().sum().item() / counts.sum().item()
        print(f"\nall {int(counts.sum())} samples: {total:.2f} %")
        picture = figures.confusion(counts.numpy(), names)
        figures.save(picture, into(source.output) / "confusion", rows, pdf=options.pdf)
