"""The kernels on the CPU, for all tests of this folder that ask for ``host``."""

import shutil
from pathlib import Path

import pytest
from host_kernels import HostLauncher

from qkformer.neurons.cuda import launch, loader, qk_mask


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # of all folders
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)  # built by g++ first


@pytest.fixture(scope="session")
def host_launcher(pytestconfig, tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    if hasattr(pytestconfig, "cache"):
        return HostLauncher(pytestconfig.cache.mkdir("kernels"))  # of every process and run
    return HostLauncher(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def host(host_launcher, monkeypatch):
    """CPU tensors take the kernels, compiled by g++, in small blocks so that there are several."""
    monkeypatch.setitem(loader.LAUNCHERS, "cpu", host_launcher)
    monkeypatch.setattr(loader, "BLOCK", 32)
    _forget_plans()
    host_launcher.launched.clear()
    yield host_launcher
    _forget_plans()


def _forget_plans() -> None:
    launch.plan.cache_clear()
    qk_mask._teams.cache_clear()
