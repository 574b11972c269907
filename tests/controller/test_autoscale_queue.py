"""The default policy: what Ray Serve would do, and better where a queue knows more."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qserve.config import AutoscalingConfig, DeploymentConfig
from qserve.controller.autoscale import Verdict, cool_down_s, decide, queue_policy, ray_policy
from tests.controller.context import Life, context

FAST: dict[str, Any] = {"cold_start_s": 1.0}


def decision(current: int, waiting: float = 0, running: float = 0, **fields: Any) -> Verdict:
    """What the policy says to one look."""
    return decide(context(current, waiting, running, **fields), queue_policy)


# From zero


@pytest.mark.parametrize(("calls", "each", "expected"), [(1, 2, 1), (7, 2, 4), (20, 2, 10), (20, 5, 4), (1000, 2, 100)])
def test_from_zero_it_starts_what_the_calls_ask_for(calls, each, expected):
    """Not one replica, to see half a minute later that it is not enough."""
    assert decision(0, calls, config={"target_ongoing_requests": each, "upscale_delay_s": 600}).target == expected


def test_the_reason_names_the_figures():
    """A person who looks at the decisions sees why."""
    reason = "7 waiting and 0 running calls, and no replica runs: 4 replicas at 2 each"

    assert decision(0, 7).reason == reason


def test_the_rest_of_a_burst_is_counted_too():
    """The first call wakes the deployment; those that were sent with it arrive milliseconds later."""
    first = decision(0, 1)
    second = decision(0, 20, target=1, now=1000.2, policy_state=first.state)

    assert (first.target, second.target) == (1, 10)


def test_a_call_that_comes_while_the_last_replica_leaves_starts_another():
    """It is on its way out, and may not take the call any more."""
    assert decision(1, 1, target=0).target == 1


def test_calls_that_gather_while_the_first_replica_starts_are_no_burst():
    """A model takes a minute to load: what queues up in that minute says nothing of how fast it will be taken."""
    first = decision(0, 1)
    later = decision(0, 600, target=1, now=1020, policy_state=first.state)

    assert later.target == 1


# A backlog


def test_a_backlog_is_met_at_once_when_the_service_time_is_known():
    """10 calls a second of 2 s fill 20 slots, 100 within 10 s 20 more; 4 of 5 slots are counted on: 10 replicas."""
    verdict = decision(2, 100, 10, service_time_s=2.0, arrival_rate=10.0)

    assert verdict.target == 10
    assert verdict.reason == (
        "100 waiting and 10 running calls, 10 more a second at 2 s each: 10 replicas to have them taken within 10 s"
    )


def test_a_backlog_that_the_present_replicas_take_in_time_starts_nothing():
    """20 calls of 50 ms are gone before a replica could start."""
    assert decision(2, 20, 10, service_time_s=0.05, arrival_rate=10.0).target == 2


def test_no_more_replicas_are_started_than_calls_can_use():
    """Three calls of ten minutes each do not get a hundred replicas to be taken faster."""
    assert decision(1, 3, 5, service_time_s=600.0, arrival_rate=0.0).target == 2


def test_what_will_gather_until_a_new_replica_runs_is_counted():
    """It takes 30 s to start one: by then there are ten times as many."""
    told = {"service_time_s": 2.0, "arrival_rate": 20.0}

    assert decision(2, 50, 10, **told).target == 13
    assert decision(2, 50, 10, cold_start_s=30.0, **told).target == 35


def test_a_delay_that_the_user_has_set_is_kept():
    """Who writes upscale_delay_s=30 into a config, or has ported it, gets it."""
    life = Life(queue_policy, current=2, upscale_delay_s=30)
    rush = {"service_time_s": 2.0, "arrival_rate": 10.0}

    assert life.look(100, 10, **rush) == 2
    assert life.look(100, 10, after_s=29, **rush) == 2
    assert life.look(100, 10, after_s=1, **rush) == 55


def test_a_wait_that_the_user_has_set_comes_before_the_delay():
    """target_queue_wait_s is a promise to callers: it acts at once."""
    config = {"upscale_delay_s": 600, "target_queue_wait_s": 5.0}

    assert decision(2, 100, 10, service_time_s=2.0, arrival_rate=10.0, config=config).target == 15


def test_a_shorter_wait_takes_more_replicas():
    """Draining the same backlog in half the time."""
    sizes = [
        decision(2, 60, 10, service_time_s=2.0, arrival_rate=1.0, config={"target_queue_wait_s": wait_s}).target
        for wait_s in (20.0, 5.0, 2.0)
    ]

    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


# Load without a backlog


def test_without_a_backlog_it_grows_as_ray_serve_does():
    """Replicas with slots to spare: target_ongoing_requests is met, after the delay."""
    life = Life(queue_policy, current=2)

    assert life.look(0, 8, service_time_s=1.0, arrival_rate=8.0, aggregated_metrics={"running": 8.0}) == 2
    later = life.look(0, 8, after_s=30, service_time_s=1.0, arrival_rate=8.0, aggregated_metrics={"running": 8.0})

    assert later == 4
    assert life.verdict is not None
    assert life.verdict.reason == "0 waiting and 8 running calls ask for 4 replicas at 2 each, for 30 s now"


def test_calls_that_have_waited_do_not_count_twice():
    """The mean over half a minute still holds the backlog that is gone: it must not start replicas afterwards."""
    life = Life(queue_policy, current=10)
    told = {"total_num_requests": 500.0, "service_time_s": 1.0, "arrival_rate": 20.0}

    assert set(life.looks(60, 0, 20, aggregated_metrics={"running": 20.0}, **told)) == {10}


# Down


def test_it_goes_down_to_the_most_that_was_needed():
    """Not to the moment's number, which the next wave would overrun."""
    life = Life(queue_policy, current=10, downscale_delay_s=60)
    life.looks(30, 0, 4)
    life.looks(20, 0, 12)

    assert life.looks(9, 0, 2)[-1] == 10
    assert life.looks(2, 0, 2)[-1] == 6
    assert life.verdict is not None
    assert life.looks(60, 0, 2)[-1] == 1


def test_the_delay_that_the_user_has_set_is_kept_on_the_way_down():
    """Ten minutes are ten minutes."""
    life = Life(queue_policy, current=10, downscale_delay_s=600)

    assert set(life.looks(600, 0, 2, **FAST)) == {10}
    assert life.looks(2, 0, 2, **FAST)[-1] == 1


@pytest.mark.parametrize(("start_s", "expected"), [(None, 300), (1.0, 60), (20.0, 100), (200.0, 300)])
def test_without_a_delay_a_replica_is_kept_as_long_as_its_start_is_worth(start_s, expected):
    """One that starts in a second is soon let go, one that loads for minutes is not."""
    assert cool_down_s(context(cold_start_s=start_s)) == expected


def test_a_downscale_that_was_too_early_doubles_the_next_delay():
    """The load comes back each minute: the second time it is waited for."""
    told: dict[str, Any] = {"cold_start_s": 1.0, "last_scale_down_time": 900.0}

    assert cool_down_s(context(last_scale_up_time=930.0, **told)) == 120
    assert cool_down_s(context(last_scale_up_time=970.0, **told)) == 60
    assert cool_down_s(context(last_scale_up_time=800.0, **told)) == 60


def test_what_nobody_watched_counts_as_busy():
    """No controller ran for ten minutes: the next one does not take the silence for idleness."""
    life = Life(queue_policy, current=10, downscale_delay_s=60)
    life.looks(30, 0, 20)

    assert life.look(0, 2, after_s=600) == 10
    assert life.looks(58, 0, 2)[-1] == 10
    assert life.looks(3, 0, 2)[-1] == 1


@pytest.mark.parametrize("policy", [queue_policy, ray_policy])
def test_a_clock_that_was_put_back_costs_one_delay(policy):
    """An hour back: nothing may wait for an hour, neither up nor down."""
    life = Life(policy, current=4, upscale_delay_s=30, downscale_delay_s=60)
    life.looks(20, 0, 20)
    life.now -= 3600

    assert life.looks(62, 0, 20)[-1] == 10
    life.looks(20, 0, 2)
    life.now -= 3600
    assert life.looks(125, 0, 2)[-1] == 1


def test_a_config_that_was_in_redis_still_knows_what_was_set():
    """30 s that the user wrote, and 30 s that nobody wrote, are not the same."""
    config = DeploymentConfig(autoscaling_config=AutoscalingConfig(max_replicas=3, upscale_delay_s=30))

    read = DeploymentConfig.from_record(json.loads(config.model_dump_json()))

    assert read == config
    assert read.autoscaling_config is not None
    assert read.autoscaling_config.model_fields_set == {"max_replicas", "upscale_delay_s"}


def test_a_downscaling_factor_takes_one_step_a_delay():
    """Half of the way, and then the delay again."""
    life = Life(queue_policy, current=16, downscale_delay_s=60, downscaling_factor=0.5)

    assert life.looks(61, 0, 4)[-1] == 9
    assert life.looks(59, 0, 4)[-1] == 9
    assert life.looks(2, 0, 4)[-1] == 6


# To zero


def test_to_zero_it_goes_when_no_call_came_for_the_delay():
    """From one replica, since the last call; not since the mean over the look-back period has faded."""
    life = Life(queue_policy, current=1, downscale_to_zero_delay_s=20)
    life.look(0, 1)

    assert life.look(total_num_requests=0.9, after_s=1) == 1
    assert life.looks(19, total_num_requests=0.3)[-1] == 1
    assert life.look(total_num_requests=0.01, after_s=1) == 0
    assert life.verdict is not None
    assert life.verdict.reason == "no call for 20 s"


def test_short_calls_that_no_look_saw_keep_it_awake():
    """A call of 5 ms each three seconds: the queue is empty at every look, and the deployment is in use."""
    life = Life(queue_policy, current=1, downscale_to_zero_delay_s=20)

    for _ in range(20):
        assert set(life.looks(5)) == {1}
        assert life.look(new_requests=1) == 1


def test_from_many_to_zero_both_delays_have_passed():
    """The user's downscale_delay_s holds for all steps but the last one."""
    life = Life(queue_policy, current=5, downscale_delay_s=60, downscale_to_zero_delay_s=10)

    assert set(life.looks(60)) == {5}
    assert life.looks(2)[-1] == 0


def test_a_deployment_that_may_not_sleep_does_not():
    """min_replicas=1."""
    life = Life(queue_policy, current=1, min_replicas=1, downscale_delay_s=1)

    assert set(life.looks(100)) == {1}


# At all times

loads = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 50), st.integers(1, 90)),
    min_size=5,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(
    loads,
    st.sampled_from([None, 5.0, 60.0]),
    st.sampled_from([None, 2.0, 30.0]),
    st.integers(0, 3),
)
def test_it_turns_round_once_in_a_cool_down_at_the_most(steps, down_s, up_s, low):
    """Load that flaps, however it flaps, does not make replicas start and stop all the time."""
    config = {"min_replicas": low, "max_replicas": 50}
    config |= {} if down_s is None else {"downscale_delay_s": down_s}
    config |= {} if up_s is None else {"upscale_delay_s": up_s}
    life = Life(queue_policy, current=low, **config)
    targets = [low]
    for waiting, running, seconds in steps:
        targets += life.looks(seconds, waiting, running, service_time_s=0.5, arrival_rate=4.0, **FAST)

    ups = [after > before for before, after in pairwise(targets) if after != before]
    turns = sum(up != before for before, up in pairwise(ups))
    cool_down = 60.0 if down_s is None else down_s
    assert turns <= len(targets) / cool_down + 2
    assert all(low <= target <= 50 for target in targets)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(0, 300), st.integers(0, 250), st.floats(0.01, 100), st.floats(0, 500))
def test_a_bigger_backlog_never_asks_for_fewer_replicas(current, waiting, running, service_s, rate):
    """Else a queue could grow for ever."""
    told = {"service_time_s": service_s, "arrival_rate": rate}

    fewer = decision(current, waiting, running, **told).target
    more = decision(current, waiting + 50, running, **told).target

    assert fewer <= more
