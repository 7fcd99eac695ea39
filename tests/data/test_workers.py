"""How many processes load data where nobody says so, and what is said where they are too few."""

import os

import pytest
from data.numbered import CPU, Numbers, config

from qkformer.data import workers
from qkformer.data.loaders import training_loader
from qkformer.data.workers import advice, loading_processes


@pytest.fixture
def machine(monkeypatch):
    """Has so many cores for so many training processes."""

    def with_cores(cores, processes):
        monkeypatch.setattr(workers, "cores", lambda: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))

    return with_cores


@pytest.mark.parametrize(
    ("cores", "processes", "share"), [(64, 8, 8), (12, 1, 12), (128, 2, 16), (2, 4, 1)]
)
def test_null_is_the_share_of_the_cores(machine, cores, processes, share):
    machine(cores, processes)
    assert loading_processes(config(workers=None)) == share
    assert [loading_processes(config(workers=count)) for count in (0, 3)] == [0, 3]


def test_a_loader_has_them(machine):
    machine(1, 1)
    assert training_loader(Numbers(), config(workers=None), CPU, seed=0).num_workers == 1


def test_cores_that_this_process_may_not_use_do_not_count():
    assert 1 <= workers.cores() <= os.cpu_count()


def test_who_waits_for_data_is_told_what_may_help(machine):
    machine(16, 1)
    few, all_cores = config(workers=8), config(workers=None)
    assert advice(few, 1128.0, 0.09) is None
    line = advice(few, 1128.0, 0.25)
    assert "the loader gives 1128 images/s, the device could take up to 1504" in line
    assert line.endswith("data.workers: 16 instead of 8 may help")
    assert "16 processes load already: faster storage" in advice(all_cores, 2000.0, 0.5)
