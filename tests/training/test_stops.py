"""Runs that are killed or asked to stop, in processes of their own, end as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from data.event_files import write_cifar10_dvs
from same import assert_same
from training import stopped_run
from training.few import SMALL, metrics, register
from training.stopped_run import announcement, free_port, signal_at

from qkformer.checkpoint.io import read_checkpoint
from qkformer.data.events import cifar10_dvs
from qkformer.data.source import DataConfig
from qkformer.training import main
from qkformer.training.distributed import STOPPING, Stopped, StopRequest

pytestmark = pytest.mark.slow

SCRIPT = Path(stopped_run.__file__)
# everything that has a state: workers, augmentation, mixup, erasing, accumulation, averaging, LAMB
CONFIG = """
epochs: 2
seed: 3
model: {name: qkformer_4_384, T: 2, neuron: eager, drop_path_rate: 0.1, args: SMALL}
data: {name: few, image_size: 8, batch_size: 4, crop_pct: 1.0, workers: 1}
augmentation:
  {shift: 1, auto_augment: rand-m5-n1, erasing_prob: 0.5, erasing_mode: pixel, mixup_alpha: 0.5,
   cutmix_alpha: 1.0, cutout: 2, repeats: 2}
loss: {label_smoothing: 0.1, tet_lambda: 0.1}
optimizer: {name: lamb, lr: 0.005, weight_decay: 0.05, accumulation_steps: 2, ema_decay: 0.9}
schedule: {name: one_cycle, warmup_epochs: 1}
checkpoint: {minutes: 1.0e-9}
""".replace("SMALL", json.dumps(SMALL))
EVENTS = """
epochs: 1
model: {name: qkformer_2_256, T: 2, args: {embed_dim: 16, num_heads: 2}}
data: {name: cifar10-dvs, root: events, image_size: 16, batch_size: 4}
optimizer: {lr: 0.005}
schedule: {name: one_cycle}
"""
STEPS, TEST_BATCHES = 7, 5  # of an epoch in one process; there are two tests, of either weights
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
ARGV = ["--output", "run", "--device", "cpu"]


def start(folder, *, processes=1, signal_at="", config=CONFIG, names=TORCHRUN, launched=False):
    (folder / "few.yml").write_text(config)
    places = [{}]
    if processes > 1:
        port = free_port()
        places = [announcement(names, rank, processes, port) for rank in range(processes)]
    places = [{"SIGNAL_AT": signal_at} | place for place in places]
    return stopped_run.start(folder, ARGV, places, launched=launched)


def finish(folder, processes=1):
    done = start(folder, processes=processes)
    assert set(done.codes) == {0}, done.stderr
    return done


def result(folder):
    return (
        metrics(folder / "run"),
        read_checkpoint(folder / "run/last.pth"),
        read_checkpoint(folder / "run/best.pth"),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    return result(folder)


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole_of_two")
    finish(folder, processes=2)
    return folder


@pytest.fixture(scope="module")
def whole_of_two(folder_of_two):
    return result(folder_of_two)


@pytest.mark.parametrize(("weights", "whose"), [("trained", ""), ("ema", "ema_")])
def test_one_process_confirms_to_the_digit_what_two_have_reported(
    folder_of_two, whole_of_two, monkeypatch, weights, whose
):
    register(monkeypatch)
    last = folder_of_two / "run/last.pth"
    options = ["--checkpoint", str(last), "--weights", weights, "--device", "cpu"]
    main.test(folder_of_two / "few.yml", [*options, "--output", str(folder_of_two / weights)])
    found = json.loads((folder_of_two / weights / "results.json").read_text())
    reported = whole_of_two[0][-1]
    for key in ("acc1", "acc5"):
        assert found[key] == reported[f"{whose}test_{key}"]
    assert found["loss"] == pytest.approx(reported[f"{whose}test_loss"], rel=1e-14)  # sum of sums


def test_a_run_killed_again_and_again_ends_bit_for_bit_as_one_that_was_not(tmp_path, whole):
    kills = [
        "0:step:3:SIGKILL",  # two steps saved
        # config.yml, environment.json; .next.pth, last to previous, and then not .next to last
        "0:rename:5:SIGKILL",
        f"0:step:{STEPS - 3 + 3}:SIGKILL",  # in the middle of testing
        "0:best:2:SIGKILL",  # the first call is at the start; between last.pth and best.pth
        "0:step:1:SIGKILL",
    ]
    progress = []
    for kill in kills:
        assert start(tmp_path, signal_at=kill).codes == [-9]
        # .next.pth is whole where it is: the newest, which only lacks its name
        names = [".next.pth", "last.pth", "previous.pth"]
        files = [tmp_path / "run" / name for name in names]
        newest = read_checkpoint(next(file for file in files if file.exists()))
        progress.append((len(newest["history"]), (newest["progress"] or [{}])[0].get("steps", 0)))
    assert progress == [(0, 2), (0, 3), (0, STEPS), (1, 0), (1, 0)]
    finish(tmp_path)
    assert_same(result(tmp_path), whole)


def test_a_run_of_two_processes_does_too(tmp_path, whole_of_two):
    """... and the death of either is noticed by the other, which says so."""
    for kill in ("1:step:2:SIGKILL", "0:rename:5:SIGKILL", "1:step:7:SIGKILL"):
        killed = start(tmp_path, processes=2, signal_at=kill)
        assert sorted(killed.codes) == [-9, 1]
        assert "lost another process, whose own message says why (" in killed.stderr
    finish(tmp_path, processes=2)
    assert_same(result(tmp_path), whole_of_two)


@pytest.mark.parametrize(
    ("name", "step"),
    [("SIGTERM", 2), ("SIGINT", STEPS + 2), ("SIGUSR1", STEPS + TEST_BATCHES + 1)],
    ids=["SIGTERM in training", "SIGINT in testing", "SIGUSR1 in testing"],
)
def test_a_run_asked_to_stop_saves_says_so_and_goes_on(tmp_path, whole, name, step):
    stopped = start(tmp_path, signal_at=f"0:step:{step}:{name}")
    assert stopped.codes == [75]
    message = stopped.stderr.splitlines()[-1]
    assert message.startswith(f"stopped by {name} in epoch 0 after")
    assert "the same command goes on" in message
    assert "Traceback" not in stopped.stderr
    assert read_checkpoint(tmp_path / "run/last.pth")["progress"][0]["steps"] == min(step, STEPS)
    assert "goes on from run/last.pth" in finish(tmp_path).stdout
    assert_same(result(tmp_path), whole)


def test_all_processes_stop_at_one_step_when_one_is_asked_to(tmp_path, whole_of_two):
    stopped = start(tmp_path, processes=2, signal_at="1:step:2:SIGUSR1")
    assert stopped.codes == [75, 75]
    assert "process 0: stopped by SIGUSR1 in epoch 0" in stopped.stderr
    progress = read_checkpoint(tmp_path / "run/last.pth")["progress"]
    assert {part["steps"] for part in progress} in ({2}, {3})  # the next one, of short steps
    finish(tmp_path, processes=2)
    assert_same(result(tmp_path), whole_of_two)


def test_processes_that_srun_ends_when_one_has_stopped_end_with_75_all_the_same(tmp_path):
    """As configs/slurm/train.sbatch has it: --kill-on-bad-exit sends SIGTERM to the others."""
    places = "0:step:2:SIGUSR1 0:exit:1:SIGTERM"
    assert start(tmp_path, processes=2, signal_at=places, names=SRUN).codes == [75, 75]


def test_an_error_of_one_process_ends_all_with_its_reason(tmp_path):
    failed = start(tmp_path, processes=2, signal_at="1:step:2:ERROR")
    assert failed.codes == [1, 2]
    assert "process 1: error: a folder is gone" in failed.stderr


def test_ctrl_c_twice_ends_at_once(tmp_path):
    # the second comes while the first is being obeyed
    stopped = start(tmp_path, signal_at="0:step:2:SIGINT 0:rename:4:SIGINT")
    assert stopped.codes == [130]
    assert stopped.stderr.splitlines()[-1].startswith("interrupted; --resume auto")


# ----------------------------------------------------------------------------- under torchrun


def torchrun(folder, *options, signal_at=""):
    """A real one, with two workers."""
    (folder / "few.yml").write_text(CONFIG)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*launch, *options, str(SCRIPT), "few.yml", *ARGV],
        env={**os.environ, "OMP_NUM_THREADS": "1", "SIGNAL_AT": signal_at},
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_worker_that_is_killed_is_replaced_and_the_run_goes_on(tmp_path, whole_of_two):
    run = torchrun(tmp_path, "--max-restarts=1", signal_at="1:step:4:SIGKILL")
    _, said = run.communicate(timeout=240)
    assert run.returncode == 0, said
    assert_same(result(tmp_path), whole_of_two)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGKILL"])
def test_what_ends_torchrun_stops_its_workers_and_nothing_is_lost(tmp_path, whole_of_two, name):
    """It hands on the first two; the others end it at once, which its workers notice."""
    run = torchrun(tmp_path, signal_at="0:step:3:PAUSE 1:step:3:PAUSE")
    wait_for(lambda: (tmp_path / "run/last.pth").exists())
    run.send_signal(getattr(signal, name))
    _, said = run.communicate(timeout=240)  # until the last worker has closed its end of the pipe
    handled = name in ("SIGTERM", "SIGINT")
    assert run.returncode == (1 if handled else -getattr(signal, name))
    reason = name if handled else "the end of its launcher"
    assert f"process 0: stopped by {reason} in epoch 0" in said
    assert read_checkpoint(tmp_path / "run/last.pth")["progress"][0]["steps"] >= 2
    finish(tmp_path, processes=2)  # which takes the folder's lock
    assert_same(result(tmp_path), whole_of_two)


def wait_for(condition):
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


# ---------------------------------------------------------------------- before training begins


def asked_to_stop(folder, place):
    """A run in this process, with all that is imported already."""
    torch.set_num_threads(1)
    signal_at(*place.split(":"))
    main.train(folder / "few.yml", ["--output", str(folder / "run"), "--device", "cpu"])


def test_the_preparation_of_events_stops_again_and_again_and_goes_on(tmp_path, capfd):
    """... while archives are unpacked, recordings converted and events integrated."""
    root = tmp_path / "events"
    write_cifar10_dvs(root, 2, events=30)
    (tmp_path / "few.yml").write_text(EVENTS.replace("root: events", f"root: {root}"))
    finished = []
    for files, name in ((5, "SIGTERM"), (16 + 9, "SIGINT"), (12 + 9, "SIGUSR1")):
        arguments = (tmp_path, f"0:rename:{files}:{name}")
        process = get_context("fork").Process(target=asked_to_stop, args=arguments)
        process.start()
        process.join(240)
        assert process.exitcode == 75
        said = capfd.readouterr().err
        assert said == f"stopped by {name} before training began: the same command goes on\n"
        finished.append(sorted(mark.stem for mark in root.glob("*.complete")))
    assert finished == [[], ["extract"], ["events_np", "extract"]]
    data = cifar10_dvs(DataConfig("cifar10-dvs", image_size=16, batch_size=4, root=str(root)), T=2)
    assert len(data.train) + len(data.test) == 20
    assert not list(root.rglob("*.tmp"))


def stopped_early(folder, signal_at, config):
    """Two processes that are asked to stop before their first step: what they say."""
    stopped = start(folder, processes=2, signal_at=signal_at, config=config, launched=True)
    assert stopped.codes == [75, 75]
    assert "Traceback" not in stopped.stderr
    return stopped.stderr


def test_processes_that_wait_for_the_preparation_end_with_it(tmp_path):
    write_cifar10_dvs(tmp_path / "events", 2, events=30)
    # whichever it is that prepares
    said = stopped_early(tmp_path, "0:rename:30:SIGTERM 1:rename:30:SIGTERM", EVENTS)
    assert "process 0: stopped by SIGTERM before training began" in said


def test_a_process_that_waits_for_another_machine_stops(tmp_path):
    places = "1:wait:1:PAUSE 0:sleep:2:SIGUSR1"
    said = stopped_early(tmp_path, places, CONFIG)
    assert "process 0: stopped by SIGUSR1 before training began" in said


def test_signals_raise_before_training_and_are_remembered_in_it():
    before = [signal.getsignal(number) for number in STOPPING]
    with StopRequest() as stop:
        with pytest.raises(Stopped, match="SIGUSR1 before training began"):
            os.kill(os.getpid(), signal.SIGUSR1)
        stop.remember()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGUSR1"
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_a_signal_keeps_its_name_where_the_shell_that_started_the_run_is_gone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with StopRequest() as stop:
        stop.remember()
        monkeypatch.setattr(os, "getppid", lambda: 1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received == "SIGTERM"


def test_a_stop_is_no_error_that_others_could_handle():
    assert not issubclass(Stopped, Exception)  # read_checkpoint would call the file damaged
