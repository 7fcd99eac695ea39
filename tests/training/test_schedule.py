"""Learning rates as functions of how far training has come."""

import math

import pytest

from qkformer.training.schedule import ScheduleConfig, create_schedule

EPOCHS, PEAK = 10, 0.5


def schedule(**changes):
    values = {"name": "one_cycle", "warmup_epochs": 3, "warmup_lr": 0.1, "min_lr": 0.01}
    return create_schedule(ScheduleConfig(**{**values, **changes}), PEAK, EPOCHS)


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


def test_without_warm_up_the_first_step_has_the_peak():
    assert schedule(warmup_epochs=0)(0) == PEAK


@pytest.mark.parametrize("warmup_epochs", [EPOCHS, 2 * EPOCHS])
def test_a_training_shorter_than_its_warm_up_just_rises(warmup_epochs):
    rates = [schedule(warmup_epochs=warmup_epochs)(epoch) for epoch in range(EPOCHS)]
    assert rates == sorted(rates)
    assert rates[-1] < PEAK


@pytest.mark.parametrize("key", ["warmup_epochs", "warmup_lr", "min_lr"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_values_name_their_key(key, value):
    with pytest.raises(ValueError, match=key):
        ScheduleConfig("one_cycle", **{key: value})
