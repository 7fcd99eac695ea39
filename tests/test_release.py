"""What `make dist` builds, installed where the repository is not; and what a release says."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import qkformer
from qkformer.training.command_line import parse_train
from qkformer.training.config_file import to_yaml

ROOT = Path(__file__).parents[1]
# The model, and a configuration by its name.
SCRIPT = """
import runpy, sys, torch, qkformer
print(qkformer.__file__)
model = qkformer.create_model("qkformer_4_384", embed_dim=16, num_heads=2)
assert model(torch.rand(1, 3, 32, 32)).shape == (1, 10)
sys.argv[1:] = ["--config", "imagenet_qkformer_10_768.yml", "--print_config"]
runpy.run_module("qkformer.train", run_name="__main__")
"""


def run(*command, cwd):
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Both, built in a copy of the repository: nothing is fetched, nothing is left here."""
    copy = tmp_path_factory.mktemp("dist") / "repository"
    made = {".git", "runs", "data", "build", "dist", ".pytest_cache", ".ruff_cache"}
    made |= {".venv", ".venv-oldest"}

    def left_out(folder, names):
        kept = set() if Path(folder) != ROOT else made
        return [n for n in names if n in kept or n.endswith((".egg-info", "__pycache__"))]

    shutil.copytree(ROOT, copy, ignore=left_out)
    run(sys.executable, "-m", "build", "--no-isolation", cwd=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """A Python that has the wheel, and of everything else what this one has."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    python = folder / "env/bin/python"
    (wheel,) = dist.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", str(wheel), cwd=folder)
    (packages,) = folder.glob("env/lib/*/site-packages")
    # a folder on the path, whose own .pth files, as of an editable install, are not read
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


def of_the_package(*patterns):
    paths = [path for pattern in patterns for path in (ROOT / "qkformer").rglob(pattern)]
    return {str(path.relative_to(ROOT)) for path in paths}


@pytest.mark.slow
def test_the_wheel_has_sources_kernels_tables_and_configs_and_no_more(dist):
    (wheel,) = dist.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if "dist-info/" not in name]
    configs = {f"qkformer/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/**/*.yml")}
    kernels = of_the_package("*.cu", "*.cuh")
    assert len(configs) > 30 and len(kernels) > 3
    assert set(names) == configs | kernels | of_the_package("*.py", "*.csv")


@pytest.mark.slow
def test_the_source_distribution_has_what_its_tests_need(dist):
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for pattern in ("tests/**/*.py", "tests/golden/**/*.npz", "configs/**/*.yml", "*/train.py"):
        wanted = {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)}
        assert wanted and wanted <= names
    assert {"constraints.txt", "constraints-oldest.txt"} <= names
    assert {"Makefile", "LICENSE", "CITATION.cff", "docs/hub.md"} <= names


@pytest.mark.slow
def test_models_commands_and_configs_work_without_the_repository(installed, tmp_path):
    where, *printed = run(installed, "-c", SCRIPT, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(installed.parents[1])
    config = parse_train(ROOT / "configs/imagenet_qkformer_10_768.yml", [])[0]
    assert printed == to_yaml(config).splitlines()
    commands = run(installed.parent / "qkformer", "--help", cwd=tmp_path)
    assert re.search(r"^  energy ", commands, re.MULTILINE)


# ------------------------------------------------------------------------------- what is said of it


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == qkformer.__version__
    for paper in (citation["preferred-citation"], *citation["references"]):
        assert all({"family-names", "given-names"} == author.keys() for author in paper["authors"])


def test_issue_forms_are_as_github_reads_them():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for form in map(yaml.safe_load, (path.read_text() for path in forms)):
        assert form["name"] and form["description"]
        identifiers = [each["id"] for each in form["body"]]
        assert len(set(identifiers)) == len(identifiers)
        assert all(each["attributes"]["label"] for each in form["body"])


def test_the_release_builds_as_make_does():
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    steps = [step.get("run", "") for step in workflow["jobs"]["dist"]["steps"]]
    assert any(step.startswith("make dist\n") for step in steps)
    used = re.findall(r"--config (\S+)", "".join(steps))
    assert used and all((ROOT / "configs" / name).exists() for name in used)
