"""Where results are kept: a file per machine, with all that is needed to measure them again."""

import json
import os
import platform
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from qkformer.files import write_text
from qkformer.training.distributed import World
from qkformer.training.environment import describe

RESULTS = Path(__file__).parent / "results"


def machine_name(device: torch.device) -> str:
    """The GPU, or the processor and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores"


def slug(name: str) -> str:
    """A name for files: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "")).strip("-")


def save(
    folder: Path,
    benchmark: str,
    label: str,
    device: torch.device,
    arguments: list[str],
    content: dict[str, Any],
) -> Path:
    """Add a result to this machine's file, in place of one with the same label.

    Args:
        folder: Of the results.
        benchmark: As in ``python -m benchmarks.<benchmark>``.
        label: What was measured: model, size, batch, ...
        device: Where.
        arguments: Of the command line.
        content: Rows, settings.

    Returns:
        The file.
    """
    machine = machine_name(device)
    path = folder / f"{slug(machine)}.json"
    results = json.loads(path.read_text()) if path.exists() else {"machine": machine}
    results.setdefault(benchmark, {})[label] = provenance(benchmark, arguments, device) | content
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results, indent=1) + "\n")
    return path


def provenance(benchmark: str, arguments: list[str], device: torch.device) -> dict[str, Any]:
    """How a result came to be: command, date, commit, versions, threads, load of the machine."""
    here = describe(device, World())
    spin = os.environ.get("GOMP_SPINCOUNT")
    environment = f"GOMP_SPINCOUNT={spin} " if spin else ""
    command = ["python", "-m", f"benchmarks.{benchmark}", *arguments]
    return {
        "command": environment + shlex.join(command),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": here["commit"],
        "versions": here["versions"],
        "platform": here["platform"],
        "device": device.type,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M)
        if (cpuinfo.exists())
        else None
    )
    return found[1].strip() if found else platform.processor() or platform.machine()
