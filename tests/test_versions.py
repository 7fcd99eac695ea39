"""The versions that are promised, those that tests install, and those that the manual lists."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("demo", "analysis", "export", "benchmark")  # others: CUDA's, and tools


def pins(name):
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def promised():
    """Package -> lowest version."""
    texts = [*PROJECT["dependencies"]]
    for extra in EXTRAS:
        texts += PROJECT["optional-dependencies"][extra]
    lowest = {}
    for requirement in map(Requirement, texts):
        (floor,) = (part.version for part in requirement.specifier if part.operator == ">=")
        assert lowest.setdefault(requirement.name, floor) == floor
    return lowest


def test_the_lowest_versions_that_are_promised_are_those_that_are_tested():
    tested = {name: Version(version) for name, version in pins("constraints-oldest.txt").items()}
    del tested["torchaudio"]  # spikingjelly's, of PyTorch's own version
    assert {name: Version(floor) for name, floor in promised().items()} == tested


def test_the_newest_versions_that_are_tested_are_promised():
    newest = pins("constraints.txt")
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(newest[requirement.name])


def test_the_manual_lists_every_python_and_both_ends_of_pytorch():
    manual = (ROOT / "docs/index.md").read_text().partition("## Versions")[2]
    rows = re.findall(r"^\| (3\.\d+) \| ([\d.]+) \|", manual, re.MULTILINE)
    pythons = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if ":: 3." in text}
    assert {python for python, _ in rows} == pythons
    assert PROJECT["requires-python"] == f">={min(pythons, key=Version)}"
    both = {pins(name)["torch"] for name in ("constraints.txt", "constraints-oldest.txt")}
    assert both <= {torch for _, torch in rows}
