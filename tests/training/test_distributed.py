"""Several processes compute what one would, and know of each other."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training.few import register

from qkformer.training import distributed, main
from qkformer.training.checkpointing import Checkpoints
from qkformer.training.config import ConfigError
from qkformer.training.distributed import (
    ProcessError,
    StopRequest,
    World,
    announced,
    joined,
    lost_process,
)
from qkformer.training.environment import choose_device

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def one():
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        return module.results(World())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launch, str(SCRIPT), str(folder)],
        check=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return [torch.load(folder / f"{rank}.pth") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["per replica", "accumulated", "joint batch", "averaged"])
def test_two_processes_train_as_one_on_their_joint_batch(one, two, case):
    """BatchNorm normalises every batch of a process by itself, as one does that accumulates.

    With statistics that are fixed it does not matter how the joint batch is divided at all.
    """
    for process in two:
        torch.testing.assert_close(
            process[case]["parameters"], one[case]["parameters"], rtol=1e-10, atol=1e-12
        )
        for name, value in one[case]["metrics"].items():
            assert process[case]["metrics"][name] == pytest.approx(value, rel=1e-10)
    assert one[case]["metrics"]["gradient_norm"] > 0.01
    assert not one[case]["dead"]


@pytest.mark.slow
def test_processes_average_the_same_weights_from_the_start_on(one, two):
    """Although each began with weights of its own, before the main one shared its."""
    first, second = (process["averaged"]["averaged"] for process in two)
    assert first.keys() == {"", "ema_"}
    for whose, state in first.items():
        for name, value in state.items():
            assert torch.equal(value, second[whose][name]), name
            if "running" not in name and "num_batches" not in name:  # of a half of each step
                expected = one["averaged"]["averaged"][whose][name]
                torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    assert not all(map(torch.equal, first[""].values(), first["ema_"].values()))


@pytest.mark.slow
def test_compiled_processes_train_as_those_that_are_not(two):
    for process in two:
        plain, compiled = process["plain"], process["compiled"]
        torch.testing.assert_close(
            compiled["parameters"], plain["parameters"], rtol=1e-10, atol=1e-12
        )
        assert compiled["metrics"] == pytest.approx(plain["metrics"], rel=1e-10)
        assert compiled["exchanges"] == plain["exchanges"] == 3
        assert process["compiled parts"] > 1  # of the graph: each exchanged while others compute


@pytest.mark.slow
def test_gradients_are_exchanged_once_a_step_however_many_batches_it_has(two):
    # two epochs of 24 images, 8 for every step
    assert [process["accumulated"]["exchanges"] for process in two] == [6, 6]


@pytest.mark.slow
def test_processes_stay_equal_in_weights_and_keep_their_own_statistics(two):
    first, second = (process["per replica"] for process in two)
    for name, value in first["parameters"].items():
        assert torch.equal(value, second["parameters"][name])
    # the main process's are those that are saved, and shared before testing
    running = "stages.0.embed.convs.0.bn.running_mean"
    assert not torch.equal(first["buffers"][running], second["buffers"][running])
    assert [process["buffers"]["place"] for process in (first, second)] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["testing", "testing original"])
def test_testing_is_exact_for_any_number_of_processes(one, two, case):
    for size, expected in one[case].items():
        for process in two:
            found = process[case][size]
            assert found["samples"] == expected["samples"] == size
            assert (found["acc1"], found["acc5"]) == (expected["acc1"], expected["acc5"])
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-14)


@pytest.mark.slow
def test_processes_agree(two):
    for process in two:
        assert process["largest"] == [1, 0]
        assert process["gathered"] == ["process 0", "process 1"]
    division = "ZeroDivisionError: division by zero"
    assert two[0]["first"] == [division, "Unportable: lost twice"]
    assert two[1]["first"] == [division, "RuntimeError: Unportable: lost twice"]


class Other(World):
    """One of two processes; what the other one knows at each of its steps is `says`."""

    def largest(self, *values):
        theirs = self.says.pop(0)
        return lambda: [max(pair) for pair in zip(values, theirs, strict=True)]


@pytest.mark.parametrize(
    ("says", "decisions"),
    [
        ([(0, 0), (0, 0), (2, 0), (0, 0)], [0, 0, 0, 2]),  # known a step later
        ([(0, 0), (0, 1), (0, 1), (2, 0), (0, 0)], [0, 0, 0, 2]),  # steps were long
        ([(0, 1), (0, 0), (2, 0), (0, 0)], [0, 0, 0, 2]),  # were, but are so no longer
        ([(0, 0), (1, 0), (0, 0), (0, 1), (1, 0), (0, 0)], [0, 0, 1, 0, 1, 0]),  # one for each
    ],
    ids=["short", "long", "short again", "saving"],
)
def test_what_one_process_knows_decides_for_all_without_their_waiting(says, decisions, tmp_path):
    world = Other(1, 2)
    object.__setattr__(world, "says", says)
    config = SimpleNamespace(checkpoint=SimpleNamespace(minutes=30))
    checkpoints = Checkpoints(tmp_path, None, None, config, None, world, StopRequest())
    found = [checkpoints.due() and checkpoints.decision for _ in decisions]
    assert found == decisions


# ------------------------------------------------------------------------------ announcements

MASTER = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, World()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **MASTER}, World(3, 4, 1)),
        (
            {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", **MASTER},
            World(3, 4, 1),
        ),
        # torchrun inside srun: one task per node starts several processes
        (
            {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "SLURM_PROCID": "1"}
            | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", **MASTER},
            World(9, 16, 1),
        ),
        # a batch script that starts python without srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, World()),
    ],
    ids=["alone", "torchrun", "srun", "torchrun in srun", "sbatch"],
)
def test_every_launchers_announcement_is_understood(environment, expected):
    assert announced(environment) == expected


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", **MASTER}, "LOCAL_RANK"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}, "MASTER_ADDR"),
    ],
)
def test_incomplete_announcements_name_what_is_missing(environment, missing):
    with pytest.raises(ConfigError, match=missing):
        announced(environment)


# -------------------------------------------------------------------------- what others report

LOST = [
    "[pair.cc:545] Read error [127.0.0.1]:28043: Connection reset by peer. This is often caused",
    "[pair.cc:534] Connection closed by peer [127.0.0.1]:1234",
    "NCCL error: remote process exited or there was a network error\nncclRemoteError: A call",
]
OTHER = [
    "NCCL error: ncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0 both on device 7000",
    "NCCL WARN: Error: failed to extend /dev/shm/nccl-x: No space left on device",
    "[gloo/device.cc:58] Unable to find address for: eno1",
]


@pytest.mark.parametrize("text", LOST)
def test_a_lost_connection_points_to_the_process_that_was_lost_and_keeps_its_words(text):
    said = lost_process(RuntimeError(text + " x" * 300))
    assert said.startswith("lost another process, whose own message says why")
    assert " ".join(text.split()) in said and said.count(" x") == 300


@pytest.mark.parametrize("text", OTHER)
def test_other_errors_of_the_network_are_not_called_that(text):
    assert lost_process(RuntimeError(text)) is None


@pytest.mark.parametrize("text", [*LOST, *OTHER])
def test_what_keeps_processes_from_connecting_is_said_in_full(monkeypatch, text):
    def fails(*_, **__):
        raise RuntimeError(text)

    monkeypatch.setattr(distributed.dist, "init_process_group", fails)
    with (
        pytest.raises(ProcessError) as caught,
        joined(World(0, 2), torch.device("cpu")),
    ):
        pass
    assert str(caught.value) == f"the processes cannot connect: {' '.join(text.split())}"


@pytest.mark.parametrize("text", OTHER)
def test_an_unexpected_error_of_one_of_several_processes_is_shown_whole(monkeypatch, capsys, text):
    def fails(*_):
        raise RuntimeError(text)

    def exits(status):
        raise SystemExit(status)

    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **MASTER}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(main, "parse_train", fails)
    monkeypatch.setattr(main.os, "_exit", exits)
    with pytest.raises(SystemExit) as stop:
        main.train(None)
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert "Traceback" in error and text in error


# ------------------------------------------------------------------------------------- devices


@pytest.fixture
def gpus(monkeypatch):
    """Makes it look as if so many GPUs were visible."""

    def visible(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    return visible


def test_every_process_of_a_machine_has_a_gpu_of_its_own(gpus, monkeypatch):
    gpus(4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto", World(7, 8, 3)) == torch.device("cuda", 3)
    with pytest.raises(ConfigError, match="process 4 of this machine has no GPU: there are 4"):
        choose_device("cuda", World(4, 8, 4))


def test_a_task_of_slurm_that_sees_one_gpu_takes_it(gpus, monkeypatch):
    gpus(1)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device("auto", World(3, 8, 3)) == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")  # torchrun: all processes see the same one
    with pytest.raises(ConfigError, match="process 3 of this machine has no GPU: there are 1"):
        choose_device("auto", World(3, 8, 3))
