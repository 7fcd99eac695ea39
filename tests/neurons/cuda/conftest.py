"""The kernels on the CPU, for all tests of this folder that ask for ``host``."""

import os
import shutil

import pytest
from host_kernels import HostLauncher

from qkformer.neurons.cuda import loader


@pytest.fixture(scope="session")
def host_launcher(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all processes of the run share what they compile
    folder = folder / "kernels"
    folder.mkdir(exist_ok=True)
    return HostLauncher(folder)


@pytest.fixture
def host(host_launcher, monkeypatch):
    """CPU tensors take the kernels, compiled by g++."""
    monkeypatch.setitem(loader.LAUNCHERS, "cpu", host_launcher)
    host_launcher.launched.clear()
    return host_launcher
