"""Ray Serve's algorithm, to the second: a ported `autoscaling_config` with `ray_policy` behaves as it did."""

from __future__ import annotations

import pytest

from qserve.config import AutoscalingConfig
from qserve.controller.autoscale import decide, look_every_s, ray_policy, scaled
from tests.controller.context import Life, context

AT_ONCE = {"upscale_delay_s": 0, "downscale_delay_s": 0}


@pytest.mark.parametrize(
    ("current", "total", "each", "up", "down", "expected"),
    [
        (1, 50, 10, 1, 1, 5),
        (10, 40, 2, 1, 1, 20),
        (10, 40, 2, 0.5, 1, 15),
        (10, 10, 2, 1, 1, 5),
        (10, 10, 2, 1, 0.5, 8),
        (2, 2, 2, 1, 0.5, 1),
        (4, 8, 2, 1, 1, 4),
        (4, 8, 2, 0.3, 0.7, 4),
        (0, 7, 2, 1, 1, 1),
        (0, 7, 2, 3, 1, 3),
    ],
)
def test_the_number_of_replicas_is_ray_serves(current, total, each, up, down, expected):
    """Worked examples: from replicas, calls and factors to the number that is aimed at."""
    config = AT_ONCE | {"target_ongoing_requests": each, "upscaling_factor": up, "downscaling_factor": down}

    assert decide(context(current, total, config=config), ray_policy).target == expected


def test_a_cold_start_keeps_a_higher_target():
    """Two replicas are on their way already: one more call does not take one of them back."""
    assert decide(context(0, 7, target=2, config=AT_ONCE), ray_policy).target == 2


def test_a_cold_start_does_not_wait_for_the_delay():
    """With no replica at all every second counts."""
    verdict = decide(context(0, 7, config={"upscale_delay_s": 600}), ray_policy)

    assert verdict.target == 1
    assert verdict.reason == "7 waiting and 0 running calls, and no replica runs"


def test_binary_fractions_start_no_replica():
    """0.1 + 0.2 asks for one replica of three tenths, and 0.30000000000000004 must not ask for two."""
    config = AT_ONCE | {"target_ongoing_requests": 0.1}

    assert decide(context(3, (0.1 + 0.2), config=config), ray_policy).target == 3


def test_a_factor_that_would_stop_halfway_goes_on():
    """Else a deployment with a downscaling_factor of 0.5 would never leave two replicas."""
    assert scaled(2, 1.0, AutoscalingConfig(downscaling_factor=0.5)) == 1
    assert scaled(2, 1.5, AutoscalingConfig(downscaling_factor=0.5)) == 2


def test_growing_waits_for_its_delay_and_then_takes_the_latest_number():
    """A spike shorter than upscale_delay_s starts nothing; a longer one is met as it is by then."""
    life = Life(ray_policy, current=2, upscale_delay_s=30)

    assert life.look(10) == 2
    assert life.look(20, after_s=29.9) == 2
    assert life.look(14, after_s=0.2) == 7
    assert life.verdict is not None
    assert life.verdict.reason == "14 waiting and 0 running calls ask for 7 replicas at 2 each, for 30 s now"


def test_shrinking_waits_for_its_own_delay():
    """Replicas that cost minutes to start are not given up for a lull."""
    life = Life(ray_policy, current=8, downscale_delay_s=600)

    assert life.look(4) == 8
    assert life.look(4, after_s=599) == 8
    assert life.look(6, after_s=1) == 3


@pytest.mark.parametrize("between", [8, 40], ids=["as many as there are", "more"])
def test_an_interruption_starts_the_delay_anew(between):
    """The wish must have lasted without a break; agreeing once, or turning round, is a break."""
    life = Life(ray_policy, current=4, upscale_delay_s=1000, downscale_delay_s=60)

    assert life.look(2) == 4
    assert life.look(between, after_s=59) == 4
    assert life.look(2, after_s=1) == 4
    assert life.look(2, after_s=59) == 4
    assert life.look(2, after_s=1) == 1


def test_going_to_zero_takes_two_steps():
    """N to 0 stops at 1, and from there it is downscale_to_zero_delay_s that counts."""
    life = Life(ray_policy, current=5, downscale_delay_s=60, downscale_to_zero_delay_s=300)

    assert life.look(0) == 5
    assert life.look(0, after_s=60) == 1
    assert life.look(0, after_s=60) == 1
    assert life.look(0, after_s=299) == 1
    assert life.look(0, after_s=1) == 0


def test_to_zero_has_the_other_delay_when_it_has_none_of_its_own():
    """As the documentation of Ray Serve has it."""
    life = Life(ray_policy, current=1, downscale_delay_s=60)

    assert life.look(0) == 1
    assert life.look(0, after_s=60) == 0


def test_the_limits_are_applied_last():
    """Whatever a policy wants."""
    config = AT_ONCE | {"min_replicas": 2, "max_replicas": 5}

    high = decide(context(3, 100, config=config), ray_policy)
    low = decide(context(3, 0, config=config), ray_policy)

    assert (high.target, low.target) == (5, 2)
    assert high.reason == "100 waiting and 0 running calls ask for 50 replicas at 2 each; max_replicas=5 is the limit"


def test_the_reason_tells_the_mean_where_it_differs():
    """Who reads the decision must be able to follow it."""
    verdict = decide(context(1, 12, 8, config=AT_ONCE, total_num_requests=19.34), ray_policy)

    assert verdict.reason == ("12 waiting and 8 running calls (19.3: the mean over 30 s) ask for 10 replicas at 2 each")


# Policies of the user's


def test_a_policy_is_told_what_it_returned_the_last_time():
    """Trends, hysteresis: a policy may remember."""

    def counting(ctx):
        looks = ctx.policy_state.get("looks", 0) + 1
        return looks, {"looks": looks}

    life = Life(counting, current=1, upscale_delay_s=0)

    assert [life.look() for _ in range(3)] == [1, 2, 3]


def test_delays_and_factors_come_after_a_policy():
    """They are the user's promise about how fast things move, whoever says where to."""
    life = Life(lambda ctx: (8.2, {}), current=2, upscale_delay_s=10, upscaling_factor=0.5)

    assert life.look() == 2
    assert life.look(after_s=10) == 6
    assert life.verdict is not None
    assert life.verdict.reason == "the policy asks for 8.2 replicas, with 0 waiting and 0 running calls, for 10 s now"


def test_a_cold_start_comes_before_a_policy():
    """A policy that looks at a clock must not leave a caller waiting."""
    assert decide(context(0, 1, config=AT_ONCE), lambda _: 1 / 0).target == 1


@pytest.mark.parametrize("answer", [4, 3.2, (4, {}), (3.5, {"any": 1})])
def test_a_policy_returns_a_number_or_a_number_and_a_state(answer):
    """A float is rounded up."""
    assert decide(context(1, config=AT_ONCE), lambda _: answer).target == 4


@pytest.mark.parametrize("answer", [None, "four", (4, None), (4, {}, 1), float("nan"), float("inf")])
def test_anything_else_is_an_error(answer):
    """And not a number of replicas by accident."""
    with pytest.raises((TypeError, ValueError)):
        decide(context(1, config=AT_ONCE), lambda _: answer)


def test_a_policy_that_says_a_number_keeps_its_state():
    """Returning no state is not the same as forgetting it."""
    answers = iter([(2, {"known": 1}), 3])
    life = Life(lambda _: next(answers), current=1, upscale_delay_s=0)
    life.look()

    life.look()

    assert life.state == {"known": 1}


# How often it looks


def test_an_idle_deployment_is_looked_at_seldom():
    """Two hundred idle deployments must cost next to nothing."""
    assert look_every_s(AutoscalingConfig(), idle=True) == 5.0
    assert look_every_s(AutoscalingConfig(upscale_delay_s=10), idle=True) == 2.0
    assert look_every_s(AutoscalingConfig(upscale_delay_s=0), idle=True) == 1.0


def test_who_wants_to_be_quick_is_looked_at_often():
    """A delay, or a wait, of a second cannot be kept with a look each second."""
    assert look_every_s(AutoscalingConfig(), idle=False) == 1.0
    assert look_every_s(AutoscalingConfig(upscale_delay_s=2), idle=False) == 0.4
    assert look_every_s(AutoscalingConfig(target_queue_wait_s=0.5), idle=False) == 0.2
