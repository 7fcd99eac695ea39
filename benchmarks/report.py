"""The tables of benchmarks/README.md, made from the files in benchmarks/results.

``python -m benchmarks.report`` writes them between the markers in README.md.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import roofline
from benchmarks.results_file import RESULTS
from qkformer.files import write_text

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- made by python -m benchmarks.report -->", "<!-- end of what it makes -->"
UNITS = {"train": "images/s", "inference": "images/s", "attention": "images/s"}
UNITS |= {"neuron": "M neuron-steps/s", "loader": "images/s"}
FASTEST = "than the fastest peer"
CEILING_OF = roofline.known("H200")  # of the models that loaders have to feed
Row = dict[str, Any]


def comparison(benchmark: str, rows: Sequence[Row]) -> str:
    """The table of train, inference, neuron or attention, as measure.compare gave its rows."""
    scale = 1e-6 if benchmark == "neuron" else 1
    columns: dict[str, Callable[[Row], str]] = {
        "": lambda row: row["name"],
        UNITS[benchmark]: lambda row: _number(row["per_second"] * scale),
        "ms per step": lambda row: _spread(row["seconds"], 1e3),
        "times faster": lambda row: _spread(row.get("ratio")),
        FASTEST: lambda row: _spread(row.get("peer_ratio")),
        "in CPU time": lambda row: _spread(row.get("cpu_ratio")),
        "peak MiB": lambda row: _number(row.get("peak_mib")),
        "of the first's": lambda row: _number(_share(row, rows)),
        "saved MiB": lambda row: _number(row.get("saved_mib")),
        "launches": lambda row: _number(row.get("launches")),
        "J per image": lambda row: _number(row.get("joules")),
        "of the ceiling": lambda row: _percent(row.get("ceiling_share")),
    }
    dropped = set() if any("peer_ratio" in row for row in rows) else {FASTEST}
    if not any("launches" in row for row in rows):
        dropped |= {"launches", "J per image", "of the ceiling"}
    if benchmark == "inference":
        dropped |= {"saved MiB", "of the ceiling"}
    return _table({name: cell for name, cell in columns.items() if name not in dropped}, rows)


def bounds(result: dict[str, Any]) -> str:
    """What the GPU gave in the run, which the ceiling is of, beside what is known of it."""
    gpu = roofline.GPU(**result["gpu"])
    known = roofline.known(gpu.name)
    beside = f"{_bounds(known)} ({known.source})" if known else "not known"
    return f"The ceiling is at {_bounds(gpu)}, measured in this run; of such GPUs {beside}."


def _bounds(gpu: roofline.GPU) -> str:
    return f"{gpu.bandwidth / 1e12:.2f} TB/s and {gpu.throughput / 1e12:.0f} TFLOP/s"


def scaling(points: Sequence[Row]) -> str:
    """Time and peak memory, a line per size and a pair of columns per kind."""
    kinds = list(dict.fromkeys(point["kind"] for point in points))
    sizes = list(dict.fromkeys((point["axis"], point[point["axis"]]) for point in points))
    by_size = {(p["axis"], p[p["axis"]], p["kind"]): p for p in points}

    def cell(kind: str) -> Callable[[Row], str]:
        def of(row: Row) -> str:
            point = by_size[(*row["size"], kind)]
            if "not_measured" in point:
                return f"not measured: {point['not_measured']}"
            return f"{_number(point['seconds']['median'] * 1e3)}; {_number(point.get('peak_mib'))}"

        return of

    columns = {"": lambda row: "{} = {}".format(*row["size"])}
    columns |= {f"{kind}: ms; MiB": cell(kind) for kind in kinds}
    return _table(columns, [{"size": size} for size in sizes])


def loader(rows: Sequence[Row]) -> str:
    """Images per second, and how many such cores the ceilings of training ask for."""
    needed = {
        model: round(roofline.images_per_second(model, CEILING_OF))
        for model in ("qkformer_10_384", "qkformer_10_768")
    }
    columns: dict[str, Callable[[Row], str]] = {
        "": lambda row: row["name"],
        "images/s": lambda row: _number(row["per_second"]),
        "ms per pass": lambda row: _spread(row["seconds"], 1e3),
        "times Pillow's decoding": lambda row: _spread(row.get("ratio")),
    }
    for model, ceiling in needed.items():
        columns[f"such for {model} ({ceiling}/s)"] = lambda row, ceiling=ceiling: _number(
            ceiling / row["per_second"]
        )
    return _table(columns, rows)


def report(folder: Path) -> str:
    """All results of all machines as Markdown."""
    parts = []
    machines = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not any("cuda" in _devices(machine) for machine in machines):
        parts.append("**Not measured on a GPU.** No GPU was available when these were made.")
    for path, machine in zip(sorted(folder.glob("*.json")), machines, strict=True):
        parts.append(f"## {machine['machine']}")
        for benchmark in ("train", "inference", "neuron", "attention", "scaling", "loader"):
            if benchmark not in machine:
                parts.append(f"### {benchmark}\n\nNot measured on this machine.")
                continue
            parts.append(f"### {benchmark}")
            plot = path.with_name(f"{path.stem}-{benchmark}.png")
            if plot.exists():
                parts.append(f"![{benchmark}](results/{plot.name})")
            parts += [
                _result(machine["machine"], benchmark, label, result)
                for label, result in machine[benchmark].items()
            ]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Rewrite the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args(arguments)
    text = options.readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(options.readme, f"{before}{BEGIN}\n\n{report(options.results)}\n\n{END}{after}")


def _devices(machine: dict[str, Any]) -> set[str]:
    return {
        result["device"]
        for benchmark in machine.values()
        if isinstance(benchmark, dict)
        for result in benchmark.values()
    }


def _result(machine: str, benchmark: str, label: str, result: dict[str, Any]) -> str:
    if benchmark == "scaling":
        table = scaling(result["points"])
    elif benchmark == "loader":
        table = loader(result["rows"])
    else:
        table = comparison(benchmark, result["rows"])
    commit = (result["commit"] or "unknown")[:10]
    source = (
        f"`{result['command']}`, {result['date']}, commit {commit}, "
        f"PyTorch {result['versions']['torch']}, load of the machine {result['load']}"
    )
    if _crowded(machine, result):
        source += (
            "\n\nOther programs kept the cores busy meanwhile: of the times, only the ratios in "
            "CPU time say something."
        )
    if "gpu" in result:
        source += f"\n\n{bounds(result)}"
    return f"**{label}**\n\n{table}\n\n{source}"


def _crowded(machine: str, result: dict[str, Any]) -> bool:
    """Whether a processor had twice the work that it could do at once."""
    cores = re.search(r", (\d+) cores$", machine)
    return bool(cores) and result["load"] > 2 * int(cores[1])


def _table(columns: dict[str, Callable[[Row], str]], rows: Sequence[Row]) -> str:
    lines = [list(columns), ["---"] * len(columns)]
    for row in rows:
        if "not_measured" in row:
            reason = f"not measured: {row['not_measured']}"
            lines.append([row["name"], reason, *[""] * (len(columns) - 2)])
        else:
            lines.append([cell(row) for cell in columns.values()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(row: Row, rows: Sequence[Row]) -> float | None:
    peaks = row.get("peak_mib"), rows[0].get("peak_mib")
    return peaks[0] / peaks[1] if all(peaks) else None


def _spread(values: dict[str, float] | None, scale: float = 1) -> str:
    if values is None:
        return "-"
    median, q1, q3 = (_number(values[key] * scale) for key in ("median", "q1", "q3"))
    return f"{median} [{q1}, {q3}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


if __name__ == "__main__":
    main()
