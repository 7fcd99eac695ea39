"""docs/models.yml -> docs/models.md: ``python docs/render.py``."""

import re
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
HEAD = """# Models

Every system that QKFormer's tables 1 and 2 compare it with, as a model of this package or of timm:
`qkformer.create_model(name)`. "Configs" train it by its published recipe; each file says what of it
is not known to us. This page is made by `python docs/render.py` from `docs/models.yml`.

Accuracies and energies are the publications'; none was reproduced here. "Exact" means that logits,
loss, spike counts, gradients and BatchNorm's statistics equal those of the published code in
float64 (`tests/models/test_golden.py`); the last table says against which files.
"""


def render(data: dict[str, Any]) -> str:
    """The page."""
    lines = [HEAD]
    for table in data["tables"]:
        lines += [f"## {table['title']}\n", f"{table['note']}\n"]
        head = ("system", "model", "parameters", "T", "px", "top-1 %", "energy mJ", "exact")
        head += ("configs", "known")
        lines += _table(head, (_row(row, data) for row in table["rows"]))
    lines.append("## Conventions of energy\n")
    lines += [f"- **{name}**: {text}" for name, text in data["conventions"].items()]
    lines.append("\n## Sources\n")
    lines += [f"- **{name}**: {text}" for name, text in data["sources"].items()]
    lines.append("\n## All registered models\n")
    head = "model", "parameters", "published, with unused layers", "exact to the golden files"
    lines += _table(
        head,
        (
            (
                f"`{name}`",
                f"{entry['parameters']:,}",
                f"{entry['published']:,}" if "published" in entry else "",
                ", ".join(f"`{case}`" for case in entry.get("exact", [])),
            )
            for name, entry in data["models"].items()
        ),
    )
    return "\n".join(lines).rstrip() + "\n"


def _row(row: dict[str, Any], data: dict[str, Any]) -> tuple[str, ...]:
    name = row["model"]
    ours = data["models"].get(name)
    parameters = ours["parameters"] if ours else data["timm"][name]
    printed = f" ({row['millions']:.2f} M printed)" if "millions" in row else ""
    energy = f"{row['energy']:.2f} ({row['convention']})" if "energy" in row else "-"
    accuracy = f"{row['top1']} ({row['source']})" if "top1" in row else "-"
    exact = "timm's" if ours is None else "yes" if ours.get("exact") else _kin(name, data)
    return (
        row["system"],
        f"`{name}`",
        f"{parameters:,}{printed}",
        str(row.get("T", "-")),
        str(row.get("px", "")),
        accuracy,
        energy,
        exact,
        ", ".join(f"[{name}](../configs/{name}.yml)" for name in row.get("config", [])),
        row.get("note", ""),
    )


def _kin(name: str, data: dict[str, Any]) -> str:
    """Whether another size of the family is exact."""
    exact = {_family(other) for other, entry in data["models"].items() if entry.get("exact")}
    return "other sizes" if _family(name) in exact else "no vectors exist"


def _family(name: str) -> str:
    return re.sub(r"(_\d+)*$", "", name)


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    lines += [" | ".join(row) for row in rows]
    return [f"| {line} |" if "---" not in line else f"|{line}|" for line in lines] + [""]


if __name__ == "__main__":
    page = render(yaml.safe_load((HERE / "models.yml").read_text()))
    (HERE / "models.md").write_text(page)
