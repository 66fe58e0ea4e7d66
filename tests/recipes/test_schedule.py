"""The learning-rate schedules at their corners."""

import pytest
from kveik_recipe.schedule import Schedule, decay_from


def test_wsd_warms_up_stays_and_decays_over_the_last_tenth() -> None:
    schedule = Schedule(total=1000, warmup=100)
    assert schedule.share(0) == pytest.approx(0.01)
    assert schedule.share(99) == 1.0
    assert schedule.share(899) == 1.0
    assert schedule.decay_start == 900
    assert schedule.share(900) == 1.0
    assert schedule.share(950) == pytest.approx(0.5)
    assert schedule.share(999) == pytest.approx(0.01)
    assert schedule.share(1000) == 0.0


def test_cosine_starts_at_the_peak_and_ends_at_zero() -> None:
    schedule = Schedule(total=1100, warmup=100, name="cosine")
    assert schedule.share(99) == 1.0
    assert schedule.share(100) == 1.0
    assert schedule.share(600) == pytest.approx(0.5)
    assert schedule.share(1100) == pytest.approx(0.0)


@pytest.mark.parametrize("step", [1, 9, 900, 4321])
def test_a_decay_begun_late_takes_a_tenth_of_the_whole(step: int) -> None:
    schedule = decay_from(step, warmup=0)
    assert schedule.decay_start == step
    assert schedule.total - step == pytest.approx(step / 9, abs=1)
    assert schedule.share(step) == 1.0
    assert schedule.share(schedule.total) == 0.0
