"""What looks at a queue say: mean load, arrivals, service time."""

from __future__ import annotations

import pytest

from qserve.controller.meter import RUNNING, WAITING, Meter, Sample, aggregate
from tests.controller.context import context

# Nothing until 10, then 4 until 20, then 8; seen until 30.
STEPS = [(0.0, 0.0), (10.0, 4.0), (20.0, 8.0), (30.0, 2.0)]


@pytest.mark.parametrize(
    ("look_back_s", "function", "expected"),
    [(30, "mean", 4.0), (20, "mean", 6.0), (15, "mean", 20 / 3), (5, "mean", 8.0), (15, "max", 8.0), (15, "min", 2.0)],
)
def test_a_value_holds_until_the_next_one(look_back_s, function, expected):
    """As Ray Serve has it: weighted by time, not by how often somebody looked."""
    assert aggregate(STEPS, look_back_s, function) == pytest.approx(expected)


@pytest.mark.parametrize("function", ["mean", "max", "min"])
def test_the_first_look_is_all_there_is(function):
    """A controller that has just started decides on what it sees."""
    assert aggregate([(5.0, 7.0)], 30, function) == 7.0
    assert aggregate([], 30, function) == 0.0


def test_a_short_past_is_not_diluted():
    """Seen for 10 s with a look-back of 30: the mean is that of 10 s."""
    assert aggregate([(20.0, 6.0), (30.0, 6.0)], 30, "mean") == 6.0


def meter(*samples: Sample, look_back_s: float = 30.0) -> Meter:
    """A meter that has seen these."""
    seen = Meter()
    for sample in samples:
        seen.add(sample, look_back_s)
    return seen


def test_the_service_time_follows_from_littles_law():
    """4 calls run all the time and 8 finish a second: each takes half a second. No replica reports anything."""
    looks = [Sample(float(at), 0, 4, arrived=8 * at + 4) for at in range(60)]

    assert meter(*looks).service_time_s == pytest.approx(0.5, rel=0.02)
    assert meter(*looks).arrival_rate == pytest.approx(8.0)


def test_waiting_does_not_make_calls_slower():
    """A backlog that grows: slots and completions stay the same, and so does the service time."""
    looks = [Sample(float(at), 12 * at, 5, arrived=5 + 10 * at + 12 * at) for at in range(60)]

    assert meter(*looks).service_time_s == pytest.approx(0.5, rel=0.02)
    assert meter(*looks).arrival_rate == pytest.approx(22.0)


def test_calls_that_run_and_do_not_finish_are_slow():
    """Five calls for ten seconds and none is done: they take that long at least, and the next decision must know."""
    looks = [Sample(float(at), 0, 5, arrived=5) for at in range(11)]

    assert meter(*looks).service_time_s == pytest.approx(10, rel=0.1)


def test_a_burst_of_calls_that_have_just_begun_is_not_slow():
    """Fourteen calls that run for half a second each have run for seven seconds together, which says nothing."""
    looks = [Sample(0.0, 14, 0, arrived=14), Sample(1.0, 0, 14, arrived=14)]

    assert meter(*looks).service_time_s == pytest.approx(0.5)


def test_nothing_is_known_before_a_call_ran():
    """A guess would start replicas."""
    assert meter(Sample(0.0, 10, 0, arrived=10), Sample(1.0, 10, 0, arrived=10)).service_time_s is None
    assert meter(Sample(0.0, 10, 0, arrived=10)).arrival_rate == 0.0


def test_what_came_and_went_between_glances_is_not_counted():
    """It was idle, as far as anybody saw; the calls that are here now came since the last glance."""
    seen = meter(Sample(0.0, 0, 0, arrived=100), Sample(5.0, 0, 0), Sample(10.0, 0, 0), Sample(15.0, 3, 1, arrived=150))

    assert seen.arrival_rate == pytest.approx(4 / 5)


def test_a_queue_that_is_new_begins_to_count_anew():
    """It slept in between: the server counts from zero again."""
    seen = meter(Sample(0.0, 0, 0, arrived=100), Sample(1.0, 4, 0, arrived=4), Sample(2.0, 0, 4, arrived=6))

    assert seen.arrival_rate == pytest.approx(6 / 5)


def test_a_burst_is_no_pace():
    """20 calls in a moment are not 20 calls a second from now on."""
    assert meter(Sample(0.0, 0, 0, arrived=0), Sample(0.01, 20, 0, arrived=20)).arrival_rate == 4.0


def test_the_past_is_forgotten():
    """A deployment is watched for months."""
    looks = [Sample(float(at), 0, 4, arrived=8 * at) for at in range(1000)]

    assert len(meter(*looks).samples) <= 32


def test_a_policy_is_told_all_of_it():
    """What a custom policy may look at."""
    seen = meter(Sample(0.0, 2, 4, 0.5, arrived=6), Sample(1.0, 4, 4, 1.5, arrived=16))

    told = seen.tell(context(3))

    assert (told.total_queued_requests, told.total_running_requests, told.oldest_wait_s) == (4, 4, 1.5)
    assert told.total_num_requests == 6.0
    assert told.aggregated_metrics == {WAITING: 2.0, RUNNING: 4.0}
    assert told.raw_metrics == {WAITING: ((0.0, 2.0), (1.0, 4.0)), RUNNING: ((0.0, 4.0), (1.0, 4.0))}
    assert (told.arrival_rate, told.new_requests) == (2.0, 10)
    assert told.service_time_s == pytest.approx(4 / (8 + 16 / 12))
    assert told.current_time == 1.0
