"""The README and the manual: examples run, tables are right, links lead somewhere, it builds."""

import re
import runpy
import shutil
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from sphinx.cmd.build import main as sphinx

import qkformer
from qkformer.data.registry import DATASETS
from qkformer.layers import MIXERS
from qkformer.neurons import NEURONS
from qkformer.training.command_line import parse_train

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
WORKED = DOCS / "finetune.md"  # whose blocks are files and commands
README = PAGES[0].read_text(encoding="utf-8")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(autouse=True)
def _registries_as_before():
    before = [(registry, dict(registry)) for registry in (MIXERS, NEURONS, DATASETS)]
    yield
    for registry, content in before:
        registry.clear()
        registry.update(content)


def blocks(page: Path, languages: str) -> list[tuple[str, str]]:
    """(language, content) of a page's blocks of code, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```({languages})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def script(name: str):
    spec = spec_from_file_location(name, DOCS / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ----------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page != WORKED and blocks(page, "python")],
    ids=lambda page: page.name,
)
def test_the_examples_of_a_page_run_in_order_as_one_program(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    program: dict = {"__name__": page.stem}
    for _, block in blocks(page, "python"):
        if "doctest: skip" not in block:  # needs a file that nobody may ship
            exec(compile(block, page.name, "exec"), program)


def test_pages_have_examples():
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 15


def start(command: list[str]) -> None:
    """What ``python COMMAND`` does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        if command[0] == "-m":
            patch.setattr(sys, "argv", command[1:])
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            patch.setattr(sys, "argv", command)
            runpy.run_path(command[0], run_name="__main__")


@pytest.mark.slow
def test_the_worked_example_runs_as_written_but_for_one_epoch(tmp_path, monkeypatch, capsys):
    for folder in ("configs", "imagenet"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    for language, block in blocks(WORKED, "python|yaml|sh"):
        if language != "sh":
            file = Path(re.match(r"# (\w+\.\w+)\n", block)[1])
            file.write_text(block)
            if file.name == "flowers.yml":  # nobody may ship the weights
                parse_train(file, [])
            continue
        for line in block.splitlines():
            python, *command = line.split()
            assert python == "python"
            if "qkformer.predict" in command and not find_spec("qkformer.predict"):
                continue
            if command[0] in ("imagenet/train.py", "my_events.py"):
                command += ["--epochs=1", "--schedule.warmup_epochs=0", "--device=cpu"]
            start(command)
    printed = capsys.readouterr().out
    for run in ("others", "mine", "my_events"):
        assert (tmp_path / "runs" / run / "last.pth").exists()
    assert "starts from runs/others/last.pth" in printed and "digit_9: " in printed


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(DOCS / "tour.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()


# ------------------------------------------------------------------------------------ what is said


def test_parameters_in_the_table_are_the_models():
    rows = re.findall(r"^\| `(\w+_\d+)`.*", README, re.MULTILINE)
    assert len(rows) >= 9
    for name in rows:
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        with torch.device("meta"):
            model = qkformer.create_model(name)
        assert f"{sum(p.numel() for p in model.parameters()):,}" in row


def test_the_table_of_runs_is_that_of_the_configs():
    runs = script("runs")
    assert len(runs.files()) >= 30
    assert runs.page() == runs.PAGE.read_text(), "python docs/runs.py makes it"


@each_page
def test_nothing_is_left_to_fill_in(page):
    assert not re.search("TODO|FIXME", page.read_text(encoding="utf-8"))


@each_page
def test_paths_exist(page):
    folders = "configs|imagenet|cifar100?|dvs128-gesture|cifar10-dvs|qkformer|tests|docs"
    text = page.read_text(encoding="utf-8")
    for path in re.findall(rf"(?:^|[\s`])((?:{folders})/[\w./]+[\w/])", text, re.MULTILINE):
        if "NAME" in path:
            continue
        assert (ROOT / path).exists(), path


@each_page
def test_links_and_pictures_are_there_on_github_too(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


# --------------------------------------------------------------------------------------- the manual


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Python's, of Sphinx and its extensions among each other
def test_the_manual_builds_without_a_warning(tmp_path, capsys):
    options = ["--fail-on-warning", "--keep-going", "--quiet"]
    failed = sphinx([*options, str(DOCS), str(tmp_path)])
    assert not failed, capsys.readouterr().err
    assert "SpikingSelfAttention" in (tmp_path / "api.html").read_text()


@pytest.mark.slow
def test_the_figures_can_be_drawn_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    script("draw").draw(tmp_path)
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn == {file.name for file in (DOCS / "images").glob("model_*.png")}
