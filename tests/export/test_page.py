"""The examples of docs/export.md run, in order, as one program."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.mark.slow
def test_examples_run(tmp_path, monkeypatch):
    for package in ("onnxruntime", "onnxscript", "nirtorch"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    program: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    run = [block for block in blocks if "doctest: skip" not in block]
    assert len(run) == 4
    for block in run:
        exec(compile(block, PAGE.name, "exec"), program)
    assert {path.name for path in tmp_path.iterdir()} >= {"model.onnx", "model.pt2", "trace.npz"}
