"""Event data sets, prepared once for many tests."""

import os
import shutil

import pytest
from data.event_roots import BOTH, STAGES, load, write


@pytest.fixture
def no_fsync(monkeypatch):
    """No test cuts the power, and waiting for the disk is most of what preparing data takes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Name of a data set -> its folder with all stages, not to be changed; what was written."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for name in BOTH:
            root = tmp_path_factory.mktemp(name)
            made[name] = root, write(name, root)
            load(name, root)
    return made


@pytest.fixture
def prepared(finished, tmp_path, no_fsync):
    """Name, stages -> a copy of these, as others might have made them, and what was written."""

    def copy(name, stages=STAGES, *, marks=False):
        source, written = finished[name]
        root = tmp_path / "root"
        root.mkdir()
        for stage in stages:
            shutil.copytree(source / stage, root / stage)
            if marks and stage != "download":
                shutil.copy(source / f"{stage}.complete", root)
        return root, written

    return copy
