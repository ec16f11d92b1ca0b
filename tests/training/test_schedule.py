"""The learning rate at every step."""

import dataclasses
import math

import pytest

from pipeline.training.schedule import Constant, WarmedUp
from pipeline.training.settings import TrainSettings
from tests.training.conftest import SETTINGS


def settings(**changes: object) -> TrainSettings:
    return dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]


def test_warm_up_is_linear_and_cosine_ends_at_zero() -> None:
    schedule = WarmedUp(settings(learning_rate=0.4, warmup_epochs=1.0, epochs=3, schedule="cosine"), steps=10)
    assert [schedule.rate(step) for step in (0, 4, 8)] == pytest.approx([0.04, 0.2, 0.36])
    assert schedule.rate(10) == pytest.approx(0.4)
    assert schedule.rate(20) == pytest.approx(0.2)
    assert schedule.rate(25) == pytest.approx(0.4 * 0.5 * (1 + math.cos(0.75 * math.pi)))
    assert schedule.rate(30) == pytest.approx(0.0)


def test_plateau_shrinks_after_every_eighth_stale_epoch() -> None:
    schedule = WarmedUp(settings(learning_rate=1.0, warmup_epochs=0, schedule="plateau"), steps=2)
    rates = []
    for stale in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 0):
        schedule.epoch_ended(stale)
        rates.append(schedule.rate(100))
    assert rates == pytest.approx([1.0] * 8 + [0.8, 0.8, 0.8, 0.64, 0.64])


def test_a_restart_goes_on_with_the_decayed_rate() -> None:
    before, after = (WarmedUp(settings(schedule="plateau", warmup_epochs=0), steps=2) for _ in range(2))
    before.epoch_ended(8)
    after.restore(before.state())
    assert after.rate(5) == before.rate(5) < SETTINGS.learning_rate


def test_a_warm_up_that_ends_within_a_step_never_exceeds_the_rate() -> None:
    for schedule in ("cosine", "plateau"):
        rate = WarmedUp(settings(learning_rate=0.4, warmup_epochs=0.25, epochs=3, schedule=schedule), steps=10).rate
        assert [rate(0), rate(1), rate(2)] == pytest.approx([0.16, 0.32, 0.4], rel=1e-12)


def test_a_constant_rate_stays_whatever_happens() -> None:
    schedule = Constant(0.3)
    schedule.epoch_ended(8)
    assert {schedule.rate(step) for step in (0, 7, 10_000)} == {0.3}
    after = Constant(0.3)
    after.restore(schedule.state())
    assert after.rate(2) == 0.3
