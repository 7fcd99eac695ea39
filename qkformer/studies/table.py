"""What a study found: a table with means and standard deviations, and pictures of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from qkformer.analysis import figures, logs, tables
from qkformer.analysis.log import cost
from qkformer.files import FileError, write_text
from qkformer.studies import pictures
from qkformer.studies.run import retested
from qkformer.studies.study import Study, Variant

SPEED = "speed.csv"  # of benchmarks.study
LAST, BEST, ENERGY = "top-1, last epoch (%)", "top-1, best epoch (%)", "energy (mJ)"
PAIRED = "against the first"  # of runs with one seed, which share the order of their samples


@dataclass(frozen=True)
class Run:
    """A finished run of a variant, as its folder tells of it.

    Attributes:
        values: By a column's name.
        retests: By attention and batch size, the accuracy in percent.
        facts: environment.json.
    """

    folder: Path
    values: dict[str, float]
    retests: dict[tuple[str, int], float]
    facts: dict[str, Any]


def finished_runs(folder: Path, variant: Variant) -> list[Run]:
    """The runs of a variant that reached their end, in the order of their seeds."""
    found = sorted(folder.glob(f"{variant.name}/seed*/energy.json"),
                   key=lambda file: int(file.parent.name.removeprefix("seed")))  # fmt: skip
    return [_run(file.parent) for file in found]


def _run(folder: Path) -> Run:
    rows = logs.read(folder)
    try:
        energy, facts = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("energy", "environment")
        )
        values = {
            LAST: rows[-1]["test_acc1"],
            BEST: max(row["test_acc1"] for row in rows),
            ENERGY: cost(energy, "qkformer")[0],
            "parameters (k)": energy["parameters"] / 1e3,
            "T": energy["T"],
        }
        retests = {(each["ssa"], each["batch_size"]): each["acc1"] for each in retested(folder)}
    except (OSError, ValueError, KeyError) as error:
        raise FileError(f"{folder}: no folder of a run ({type(error).__name__})") from error
    return Run(folder, values, retests, facts)


def _spread(values: list[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation of a sample, which one value does not have."""
    return mean(values), stdev(values) if len(values) > 1 else None


def rows(study: Study, runs: dict[str, list[Run]]) -> tables.Rows:
    """A row per variant with numbers: of each quantity a column with its mean and one with its sd.

    Args:
        runs: By the variant's name, those that are finished.
    """
    made = []
    first = {run.folder.name: run.values[LAST] for run in runs[study.variants[0].name]}
    for number, variant in enumerate(study.variants):
        found = runs[variant.name]
        row: dict[str, Any] = {"variant": variant.name, "title": variant.title}
        row |= {"group": variant.group, "runs": len(found)}
        for name in found[0].values if found else ():
            middle, deviation = _spread([run.values[name] for run in found])
            row |= {name: middle}
            if name in (LAST, BEST, ENERGY):
                row |= {f"{name} sd": deviation}
        paired = [run for run in found if number and run.folder.name in first]
        if paired:
            differences = [run.values[LAST] - first[run.folder.name] for run in paired]
            row[PAIRED], row[f"{PAIRED} sd"] = _spread(differences)
        made.append(row | {"published (%)": variant.published})
    return made


def retest_rows(study: Study, runs: dict[str, list[Run]]) -> tables.Rows:
    """A row per variant, attention tested with, and batch size: mean and sd of the accuracy."""
    made = []
    for variant in study.variants:
        for ssa, size in study.retests.all() if study.retests else ():
            key = ssa, size
            found = [run.retests[key] for run in runs[variant.name] if key in run.retests]
            if found:
                middle, deviation = _spread(found)
                made.append({"variant": variant.name, "title": variant.title, "tested with": ssa,
                             "batch size": size, "runs": len(found), "top-1 (%)": middle,
                             "top-1 (%) sd": deviation})  # fmt: skip
    return made


# --------------------------------------------------------------------------- for people


def _shown(row: dict[str, Any], name: str, form: str = ".2f") -> str:
    """ "96.53 ± 0.42" """
    if row.get(name) is None:
        return ""
    middle, deviation = format(row[name], form), row.get(f"{name} sd")
    return middle if deviation is None else f"{middle} ± {format(deviation, form.lstrip('+'))}"


def overview(study: Study, found: tables.Rows, speed: tables.Rows = ()) -> tables.Rows:
    """The table as a paper prints it.

    Args:
        found: Of `rows`.
        speed: Of benchmarks.study, if it was measured.
    """
    fast = {row["variant"]: row for row in speed}
    forms = {
        LAST: ".2f",
        PAIRED: "+.2f",
        BEST: ".2f",
        ENERGY: ".3g",
        "parameters (k)": ".1f",
        "T": ".0f",
    }
    several = any(row["group"] for row in found)
    return [
        ({"": row["group"] or ""} if several else {})
        | {"variant": row["title"], "seeds": str(row["runs"])}
        | {name: _shown(row, name, form) for name, form in forms.items()}
        | ({"training, images/s": _quartiles(fast.get(row["variant"], {}))} if speed else {})
        | (
            {f"published, {study.published} (%)": _shown(row, "published (%)")}
            if study.published
            else {}
        )
        for row in found
    ]


def _quartiles(row: dict[str, Any]) -> str:
    """ "512 [498, 530]" """
    name = "training images/s"
    if name not in row:
        return row.get("training not measured", "")
    return f"{row[name]:.0f} [{row[f'{name} q1']:.0f}, {row[f'{name} q3']:.0f}]"


def crossed(found: tables.Rows) -> tables.Rows:
    """Retests with a column per batch size."""
    table: dict[tuple[str, str], dict[str, str]] = {}
    for row in found:
        line = table.setdefault(
            (row["title"], row["tested with"]),
            {"trained as": row["title"], "tested with": row["tested with"]},
        )
        line[f"batch {row['batch size']}"] = _shown(row, "top-1 (%)")
    return list(table.values())


def write_tables(folder: Path, output: Path, *, pdf: bool = False) -> str:
    """study.md, study.csv and study.png; retests.csv and .png where there are any.

    Args:
        folder: Of the study.
        output: Where to write.
        pdf: Vector pictures instead of PNG.

    Returns:
        The text of study.md.

    Raises:
        FileError: it is not the folder of a study, or no run is finished.
    """
    study = Study.saved(folder)
    runs = {variant.name: finished_runs(folder, variant) for variant in study.variants}
    if not any(runs.values()):
        raise FileError(f"{folder}: no run is finished")
    output.mkdir(parents=True, exist_ok=True)
    found, again = rows(study, runs), retest_rows(study, runs)
    values = {
        quantity: {name: [run.values[quantity] for run in each] for name, each in runs.items()}
        for quantity in (LAST, ENERGY)
    }
    figures.save(pictures.study(found, values, study.published), output / "study", found, pdf=pdf)
    speed = tables.read_csv(folder / SPEED) if (folder / SPEED).exists() else ()
    parts = [f"# {study.title}", tables.markdown(overview(study, found, speed))]
    if again:
        figures.save(pictures.retests(again), output / "retests", again, pdf=pdf)
        parts += ["Top-1 (%) of the last epoch's weights, tested again:",
                  tables.markdown(crossed(again))]  # fmt: skip
    if speed:
        parts.append(
            "Speeds: median and quartiles of `benchmarks.study`, one training step each in turns."
        )
    text = "\n\n".join([*parts, _legend(runs)]) + "\n"
    write_text(output / "study.md", text)
    return text


def _legend(runs: dict[str, list[Run]]) -> str:
    """Where the numbers come from, said once for all runs."""
    all_runs = [run for each in runs.values() for run in each]

    def of_all(what: Callable[[dict[str, Any]], Any]) -> str:
        return ", ".join(dict.fromkeys(str(what(run.facts)) for run in all_runs))

    return (
        "± is the standard deviation over seeds; against the first: last epochs of runs with the "
        "same seed. The best epoch is chosen on the test set itself unless the configuration holds "
        "samples out. Energies: convention qkformer, of ANNs 4.6 pJ x MACs; last epoch, mean over "
        "the test set. "
        f"{len(all_runs)} runs on {of_all(lambda facts: facts['device'])}; Python, PyTorch "
        f"{of_all(lambda facts: facts['versions']['python'] + ', ' + facts['versions']['torch'])}; "
        f"commit {of_all(lambda facts: facts['commit'] or 'not known')}; "
        f"`{of_all(lambda facts: facts['command'])}`"
    )
