"""When a replica counts as sick: three checks in a row, without asking one that has not answered."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from qserve.node import health
from qserve.node.health import Health


class Clock:
    """A loop's timers, of which the test is the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, step: Callable[[], None]) -> Timer:
        timer = Timer(step)
        heapq.heappush(self.timers, (self.now + delay_s, next(self._numbers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self.timers and self.timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self.timers)
            if timer.step is not None:
                timer.step()
        self.now = until

    @property
    def waiting(self) -> int:
        """How many timers are set."""
        return sum(timer.step is not None for _, _, timer in self.timers)


class Timer:
    def __init__(self, step: Callable[[], None]) -> None:
        self.step: Callable[[], None] | None = step

    def cancel(self) -> None:
        self.step = None


class Patient:
    """A replica under watch, with a period of 10 s and a timeout of 4 s."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[int] = []
        self.found_sick: list[str] = []
        self.health = Health(self.asked.append, self.found_sick.append)
        self.health.watch(10.0, 4.0)

    def answer(self, error: str = "") -> None:
        """Answer the last check."""
        self.health.answered(self.asked[-1], error)


@pytest.fixture
def patient(monkeypatch) -> Patient:
    """Watched since now, by a clock without jitter."""
    clock = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    monkeypatch.setattr(health.random, "uniform", lambda low, high: (low + high) / 2)
    return Patient(clock)


def test_a_well_replica_is_asked_once_a_period(patient):
    """More often costs for nothing; less often, and a sick one serves for longer than was asked for."""
    for number in range(1, 6):
        patient.clock.advance(10.0)
        assert len(patient.asked) == number
        patient.answer()
    assert patient.found_sick == []
    assert patient.clock.waiting == 1


def test_three_errors_in_a_row_are_sick(patient):
    """The last error is what a person wants to read."""
    for error in ("first", "second", "third"):
        patient.clock.advance(10.0)
        patient.answer(error)

    (why,) = patient.found_sick
    assert "3 health checks in a row" in why
    assert why.endswith("third")
    assert patient.clock.waiting == 0


def test_errors_between_passes_are_not_sick(patient):
    """A dependency that stumbles now and then is no reason to throw a loaded model away."""
    for error in ("one", "two", "", "three", "four", "") * 3:
        patient.clock.advance(10.0)
        patient.answer(error)
    assert patient.found_sick == []


def test_a_replica_that_hangs_is_found_without_asking_it_again(patient):
    """Its checks would pile up in it. Late at 14 s, 24 s and 34 s: then it is sick."""
    patient.clock.advance(33.9)
    assert patient.asked == [1]
    assert patient.found_sick == []

    patient.clock.advance(0.2)
    assert "had not ended after 4 s" in patient.found_sick[0]


def test_a_late_answer_is_a_failure_and_no_more(patient):
    """It must not be taken for the answer to the next check; that one is asked as soon as it is free."""
    patient.clock.advance(14.0)
    patient.answer("late")
    patient.clock.advance(6.0)
    assert patient.asked == [1, 2]
    patient.answer()
    for error in ("one", "two"):
        patient.clock.advance(10.0)
        patient.answer(error)
    assert patient.found_sick == []


def test_a_replica_that_comes_back_during_a_check_is_asked_anew(patient):
    """The late answer says how it was; what it is now decides."""
    patient.clock.advance(21.0)
    patient.answer()
    assert patient.asked == [1, 2]

    patient.clock.advance(3.9)
    patient.answer()
    patient.clock.advance(28.0)
    assert patient.found_sick == []


def test_other_settings_hold_from_now_on(patient):
    """From a check a day to one a second: nobody waits a day for that."""
    patient.health.watch(1.0, 4.0)
    patient.clock.advance(1.0)
    assert patient.asked == [1]


def test_an_answer_to_another_check_changes_nothing(patient):
    """User code in the replica holds the socket, too."""
    patient.health.answered(7, "strange")
    patient.clock.advance(10.0)
    patient.health.answered(0, "old")
    patient.answer()
    patient.answer("twice")
    assert patient.clock.waiting == 1
    assert patient.found_sick == []


def test_a_stopped_watch_asks_no_more(patient):
    """What drains must not be asked, and is not sick when it says nothing."""
    patient.clock.advance(10.0)
    patient.health.stop()
    patient.health.stop()
    patient.answer("late")
    patient.clock.advance(100.0)
    assert patient.asked == [1]
    assert patient.found_sick == []


def test_checks_fall_apart_by_a_tenth(monkeypatch):
    """A hundred replicas that start together would be asked together for ever."""
    clock: Any = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    patients = [Patient(clock) for _ in range(100)]

    due = [at for at, _, _ in clock.timers]
    assert len(patients) == len(due)
    assert 9.0 <= min(due) < 9.6
    assert 10.4 < max(due) <= 11.0
