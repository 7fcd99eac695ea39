"""The model card: what a run's folder says of a checkpoint, for people."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from qkformer.analysis.log import cost
from qkformer.checkpoint.content import accuracy_is_of
from qkformer.files import FileError
from qkformer.text import duration, one_line
from qkformer.training.command_line import TestOptions
from qkformer.training.config import Config
from qkformer.training.config_file import to_yaml
from qkformer.training.model import count_parameters
from qkformer.training.trained import Trained

CONVENTION = "qkformer"  # of the energy, see docs/analysis.md

CARD = """\
---
license: unknown
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- spiking-neural-network
- qkformer
datasets:
- {data}
metrics:
- accuracy
---
# {name}, {data}

A spiking neural network of the package `qkformer`.

| | |
|---|---|
{facts}

```python
import timm
import qkformer  # gives timm its models

model = timm.create_model({source!r}, pretrained=True).eval()
```

`config.json` names the classes (`label_names`) and what test images go through. State no licence
that the data and the code which the weights come from do not allow.

## Training

{training}
"""


def model_card(trained: Trained, told: TestOptions, pushed: str | None) -> str:
    """README.md of a model's folder.

    Args:
        trained: the model.
        told: which file it is of; what lies beside is read: results.jsonl of test.py, energy.json,
            environment.json, metrics.jsonl.
        pushed: name of its repository on the hub.

    Raises:
        FileError: one of these files cannot be read.
    """
    run = told.checkpoint if told.checkpoint.is_dir() else told.checkpoint.parent
    rows = _facts(trained, told, run)
    return CARD.format(
        name=trained.config.model.name,
        data=trained.config.data.name,
        source=f"hf-hub:{pushed}" if pushed else "local-dir:FOLDER",
        facts="\n".join(f"| {name} | {value} |" for name, value in rows.items() if value),
        training=_training(trained, run),
    )


def _facts(trained: Trained, told: TestOptions, run: Path) -> dict[str, str | None]:
    model, report, data = trained.model, trained.report, trained.config.data
    tested = _tested(trained, told.weights, run)
    ssa = model.ssa
    if ssa == "original":
        batch = tested["batch_size"] if tested else data.evaluation_batch_size
        ssa += f": an output depends on the others of its batch; tested in batches of {batch}"
    return {
        "top-1": _accuracy(trained, tested),
        "time steps T": str(model.T),
        "input": f"{model.in_chans} x {data.image_size} x {data.image_size}",
        "self-attention (`ssa`)": ssa,
        "parameters": f"{count_parameters(model):,}",
        "energy": _energy(trained, told.checkpoint, run),
        "weights": "averaged over training" if told.weights == "ema" else None,
        "epoch": None if report.epoch is None else str(report.epoch),
        "known as": report.known_as,
        "made from": f"{Path(report.path).name}, md5 {report.md5}",
    }


def _tested(trained: Trained, weights: str, run: Path) -> dict[str, Any] | None:
    """The last test of these very weights as they are exported."""
    size = trained.config.data.image_size
    for results in reversed(_lines(run / "results.jsonl")):
        model = trained.model
        these = {"checkpoint_md5": trained.report.md5, "weights": weights}
        these |= {"T": model.T, "ssa": model.ssa, "input_size": [model.in_chans, size, size]}
        if these.items() <= results.items():
            return results
    return None


def _accuracy(trained: Trained, tested: dict[str, Any] | None) -> str | None:
    if tested:
        return (
            f"{tested['acc1']:.2f} % of {tested['images']:,} test images "
            f"(test.py, batches of {tested['batch_size']}, {tested['precision']})"
        )
    report = trained.report
    if report.accuracy is None:
        return None
    return f"{report.accuracy:.2f} %, as recorded in training{accuracy_is_of(report.recorded)}"


def _energy(trained: Trained, checkpoint: Path, run: Path) -> str | None:
    """What energy.json says, where it is of this file: training's is of its last weights."""
    if not (run / "energy.json").exists():
        return None
    found = _read(run / "energy.json", json.loads)
    model = trained.model
    of = Path(found.get("checkpoint", "last.pth")).name
    if (of, found["T"], found["ssa"]) != (checkpoint.name, model.T, model.ssa):
        return None
    energy, convention = cost(found, CONVENTION)
    return f"{energy:.4g} mJ per sample (convention {convention})"


def _training(trained: Trained, run: Path) -> str:
    """How the weights came to be: of a file of ours alone is that known."""
    if not trained.report.recorded:
        return "Not recorded in the file that the weights are from."
    lines = []
    if (run / "environment.json").exists():
        facts = _read(run / "environment.json", json.loads)
        versions = facts["versions"]
        lines.append(
            f"qkformer {versions['qkformer']}, commit {facts['commit'] or 'not known'}; PyTorch "
            f"{versions['torch']}; {facts['processes']} x {facts['device']}"
        )
    epochs = _lines(run / "metrics.jsonl")
    if epochs:
        lines.append(f"{len(epochs)} epochs in {duration(sum(e['seconds'] for e in epochs))}")
    config = f"```yaml\n{to_yaml(public(trained.config))}```"
    return "\n\n".join([*("; ".join(lines),) * bool(lines), config])


def public(config: Config) -> Config:
    """Without paths of the machine that it is from."""
    return replace(
        config,
        data=replace(config.data, root=None),
        model=replace(config.model, weights=None, skip_head=False),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return _read(path, lambda text: [json.loads(line) for line in text.splitlines()])


def _read(path: Path, how: Any) -> Any:
    try:
        return how(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path}: {one_line(error)}") from error
