"""Learning rates as functions of how far training has come."""

import json
import math
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from qkformer.training.command_line import parse_train
from qkformer.training.schedule import SCHEDULES, ScheduleConfig, create_schedule

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, PEAK = 10, 0.5
BATCHES = 6672  # of ImageNet, in an epoch on 8 processes of 24 images
TRACES = json.loads((ROOT / "tests" / "golden" / "lr_traces.json").read_text())


def schedule(**changes):
    values = {"name": "one_cycle", "warmup_epochs": 3, "warmup_lr": 0.1, "min_lr": 0.01}
    return create_schedule(ScheduleConfig(**{**values, **changes}), PEAK, EPOCHS)


@cache
def configured(name, samples_per_step):
    """A configuration, and the schedule that training makes of it."""
    config, _ = parse_train(ROOT / "configs" / f"{name}.yml", [])
    peak = config.optimizer.peak_lr(samples_per_step)
    return config, create_schedule(config.schedule, peak, config.epochs)


# -------------------------------------------------------------------------- the published traces


def test_imagenet_follows_the_published_rates_in_every_epoch():
    config, rate = configured("imagenet_qkformer_10_768", 24 * 8 * 3)
    every = config.optimizer.accumulation_steps
    assert config.data.batch_size * 8 * every == 576
    expected = TRACES["imagenet_10_768"]["lr"]
    assert len(expected) == config.all_epochs == TRACES["imagenet_10_768"]["epochs"]
    for epoch, mean in enumerate(expected):
        # all steps have as many batches, so that the mean over steps is that over batches
        rates = [rate(epoch + batch / BATCHES) for batch in range(0, BATCHES, every)]
        assert math.fsum(rates) / len(rates) == pytest.approx(mean, rel=1e-9, abs=0)


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.parametrize("batch", [0, 390, 780])
def test_cifar_follows_the_published_rates_in_every_epoch(data, batch):
    config, rate = configured(f"{data}_qkformer", 64)
    rates = [rate(epoch + batch / 781) for epoch in range(config.all_epochs)]
    assert len(rates) == 410
    logged = [float(f"{value:.4g}") for value in rates]  # four digits, as in the log
    assert logged == TRACES[data]["lr"]


@pytest.mark.parametrize("batch", [0, 280, 561])
def test_cifar10_dvs_follows_the_published_rates_in_every_epoch(batch):
    config, rate = configured("cifar10_dvs_qkformer", 16)
    rates = [rate(epoch + batch / 562) for epoch in range(config.all_epochs)]
    assert len(rates) == 106
    assert rates == pytest.approx(TRACES["cifar10-dvs"]["lr"], rel=1e-12, abs=0)


def test_dvs128_gesture_ends_its_cosine_at_its_own_least_rate():
    config, rate = configured("dvs128_gesture_qkformer", 16)  # its log is not published
    assert [rate(epoch) for epoch in (0, 10)] == pytest.approx(
        [1e-5, 2e-5 + (1e-3 - 2e-5) * (1 + math.cos(math.pi * 10 / 192)) / 2]
    )
    assert {rate(epoch) for epoch in range(192, config.all_epochs)} == {2e-5}
    assert config.all_epochs == 202


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yml")), ids=lambda f: f.stem)
def test_configured_rates_stay_between_their_ends(file):
    config, rate = configured(file.stem, 512)
    peak, lowest = config.optimizer.peak_lr(512), config.schedule.min_lr
    lowest = min(lowest, config.schedule.warmup_lr if config.schedule.warmup_epochs else lowest)
    rates = [rate(step / 7) for step in range(7 * config.all_epochs + 1)]
    assert all(lowest <= value <= peak * (1 + 1e-12) for value in rates)
    assert max(rates) > 0.95 * peak
    assert rate(config.epochs) == rate(config.all_epochs) == config.schedule.min_lr


# ------------------------------------------------------------------------------------ every kind


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup_epochs", [0, 3, 3.5, EPOCHS, 2 * EPOCHS])
def test_behind_the_last_epoch_the_rate_is_the_least_for_good(name, warmup_epochs):
    rate = schedule(name=name, warmup_epochs=warmup_epochs)
    assert {rate(at) for at in (EPOCHS, EPOCHS + 0.5, EPOCHS + 9.99, 1e9)} == {0.01}


@pytest.mark.parametrize("name", SCHEDULES)
def test_cool_down_lengthens_a_run_and_changes_no_rate_before(name):
    without, with_it = schedule(name=name), schedule(name=name, cooldown_epochs=4)
    positions = [step / 10 for step in range(10 * (EPOCHS + 4))]
    assert [without(at) for at in positions] == [with_it(at) for at in positions]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup_epochs", [EPOCHS, 2 * EPOCHS])
def test_a_training_shorter_than_its_warm_up_just_rises(name, warmup_epochs):
    rate = schedule(name=name, warmup_epochs=warmup_epochs)
    rates = [rate(epoch) for epoch in range(EPOCHS)]
    assert rates == sorted(set(rates))
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < PEAK


@pytest.mark.parametrize("name", ["cosine_per_step", "one_cycle"])
@pytest.mark.parametrize("warmup_epochs", [0, 3, 3.5])
def test_rates_of_every_step_have_no_jumps(name, warmup_epochs):
    rate, steps = schedule(name=name, warmup_epochs=warmup_epochs), 1000
    rates = [rate(step / steps) for step in range(EPOCHS * steps + 1)]
    # the steepest is half a cosine over the warm-up: pi / 2 of its mean slope
    steepest = math.pi / 2 * PEAK / (warmup_epochs or EPOCHS) / steps
    assert max(abs(b - a) for a, b in pairwise(rates)) <= steepest * 1.001


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_peak(name):
    assert schedule(name=name, warmup_epochs=0)(0) == PEAK


# ------------------------------------------------------------------------------- one of each kind


def test_cosine_per_step_rises_in_a_line_and_falls_along_half_a_cosine():
    rate = schedule(name="cosine_per_step")
    assert [rate(at) for at in (0, 1.5, 3)] == pytest.approx([0.1, (0.1 + PEAK) / 2, PEAK])
    fallen = [(PEAK + 0.01) / 2, 0.01 + (PEAK - 0.01) * (1 + math.cos(math.pi * 0.9)) / 2]
    assert [rate(at) for at in (6.5, 9.3)] == pytest.approx(fallen)


def test_cosine_per_epoch_is_constant_within_an_epoch_and_moves_between():
    rate = schedule(name="cosine_per_epoch")
    rates = [{rate(epoch + part / 977) for part in range(977)} for epoch in range(EPOCHS)]
    assert all(len(values) == 1 for values in rates)
    firsts = [values.pop() for values in rates]
    assert len(set(firsts)) == EPOCHS
    assert firsts[:4] == sorted(firsts[:4])
    assert firsts[3:] == sorted(firsts[3:], reverse=True)


def test_cosine_per_epoch_counts_the_warm_up_as_part_of_the_cosine():
    rate = schedule(name="cosine_per_epoch")
    assert rate(2) == pytest.approx(0.1 + (PEAK - 0.1) * 2 / 3)
    # so the peak itself is never reached: the first epoch behind the warm-up is on the way down
    assert rate(3) == pytest.approx(0.01 + (PEAK - 0.01) * (1 + math.cos(math.pi * 0.3)) / 2)
    assert rate(5) == pytest.approx((PEAK + 0.01) / 2)


def test_one_cycle_starts_peaks_and_ends_where_configured():
    rate = schedule()
    assert rate(0) == pytest.approx(0.1)
    assert rate(3) == pytest.approx(PEAK)
    assert rate(EPOCHS) == pytest.approx(0.01)


def test_one_cycle_rises_then_falls_along_half_cosines():
    rate = schedule()
    rates = [rate(step / 20) for step in range(EPOCHS * 20 + 1)]
    top = rates.index(max(rates))
    assert top == 60
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rate(1.5) == pytest.approx((0.1 + PEAK) / 2)
    assert rate(1) == pytest.approx(0.1 + (PEAK - 0.1) * (1 - math.cos(math.pi / 3)) / 2)
    assert rate(6.5) == pytest.approx((PEAK + 0.01) / 2)


@pytest.mark.parametrize("key", ["warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_values_name_their_key(key, value):
    with pytest.raises(ValueError, match=key):
        ScheduleConfig("one_cycle", **{key: value})
