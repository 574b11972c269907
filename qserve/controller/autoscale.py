"""How many replicas a deployment should have, and why. Pure: what was measured comes in, a verdict goes out.

Two policies: `ray_policy` decides as Ray Serve does, to the second; `queue_policy`, the default, keeps its fields and
delays and uses what a queue knows exactly. Any other function may take their place. docs/autoscaling.md, for users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite
from typing import Any

from qserve.controller.meter import RUNNING
from qserve.options import AutoscalingConfig, AutoscalingContext

Policy = Callable[[AutoscalingContext], Any]

# Under these names the delays stand in the state that policies keep.
_TIMER = "_timer"
_QUEUE = "_queue"
# Within what time a backlog shall be gone where no target_queue_wait_s says so.
_DRAIN_S = 10.0
# A replica is counted on for this share of its slots: at all of them a queue never gets shorter.
_USABLE = 0.8
# How long a replica that is not needed is kept where no downscale_delay_s says so: so many times what the start of
# the next one takes, within limits; the longer while no start was seen.
_STARTS_WORTH = 5.0
_SHORTEST_COOL_DOWN_S = 60.0
_LONGEST_COOL_DOWN_S = 300.0
# The calls of one burst come within this time: a deployment that had no replicas is started with what they ask for.
_BURST_S = 2.0
# What nobody watched for so long counts as busy.
_GAP_S = 30.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many replicas there should be, what to remember for the next time, and why, in words with figures."""

    target: int
    state: dict[str, Any]
    reason: str


def decide(ctx: AutoscalingContext, policy: Policy) -> Verdict:
    """The number of replicas that a policy leads to, within the limits. Raises what the policy raises."""
    verdict = _by_queue(ctx) if policy is queue_policy else _as_ray_serve(ctx, policy)
    low, high = ctx.capacity_adjusted_min_replicas, ctx.capacity_adjusted_max_replicas
    if verdict.target > high:
        return replace(verdict, target=high, reason=f"{verdict.reason}; max_replicas={high} is the limit")
    if verdict.target < low:
        return replace(verdict, target=low, reason=f"{verdict.reason}; min_replicas={low} is the limit")
    return verdict


def look_every_s(config: AutoscalingConfig, *, idle: bool) -> float:
    """How often a deployment is to be looked at, in seconds.

    idle  it has nothing to do and the fewest replicas that it may have
    """
    if idle:
        return min(5.0, max(1.0, config.upscale_delay_s / 5))
    soonest = 1.0
    if config.target_queue_wait_s is not None:
        soonest = min(soonest, config.target_queue_wait_s / 4)
    if "upscale_delay_s" in config.model_fields_set:
        soonest = min(soonest, config.upscale_delay_s / 5)
    return max(0.2, soonest)


def scaled(current: int, desired: float, config: AutoscalingConfig) -> int:
    """From the replicas there are towards those desired, by the factors. Source: Ray Serve, so that ports agree."""
    if current == 0:
        return _ceil(desired)
    factor = (config.upscaling_factor if desired > current else config.downscaling_factor) or 1.0
    value = max(0, _ceil(current + factor * (desired - current)))
    if _ceil(desired) < current == value:  # else the factor would keep it here for ever
        return current - 1
    return value


def _ceil(value: float) -> int:
    """The next whole number; 3.0000000000000004 replicas are 3."""
    return ceil(round(value, 9))


# As Ray Serve


def ray_policy(ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Ray Serve's policy: as many replicas as carry the load at target_ongoing_requests each."""
    return ctx.total_num_requests / ctx.config.target_ongoing_requests, ctx.policy_state


def _as_ray_serve(ctx: AutoscalingContext, policy: Policy) -> Verdict:
    """What Ray Serve makes of a policy's number: cold start before it; factors and delays after it."""
    if ctx.current_num_replicas == 0 and ctx.total_queued_requests + ctx.total_running_requests > 0:
        first = max(ceil(ctx.config.upscaling_factor or 1.0), ctx.target_num_replicas)
        return Verdict(first, ctx.policy_state, f"{_calls(ctx)}, and no replica runs")
    told = {name: value for name, value in ctx.policy_state.items() if name != _TIMER}
    number, state = _answer(policy(replace(ctx, policy_state=told)), told)
    wanted = scaled(ctx.current_num_replicas, number, ctx.config)
    target, timer, waited_s = _delayed(ctx, wanted, ctx.policy_state.get(_TIMER))
    state = {**state, _TIMER: timer} if timer else state
    if policy is ray_policy:
        reason = f"{_load(ctx)} ask for {_replicas(wanted)} at {ctx.config.target_ongoing_requests:g} each"
    else:
        reason = f"the policy asks for {number:g} replicas, with {_calls(ctx)}"
    return Verdict(target, state, _since(reason, waited_s))


def _answer(answer: Any, before: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """What a policy returned: a number and a state, or only a number. Raises TypeError or ValueError for else."""
    number, state = answer if isinstance(answer, tuple) else (answer, before)
    number = float(number)
    if not isfinite(number):
        raise ValueError(f"the policy returned {number!r}: a number of replicas is finite")
    if not isinstance(state, dict):
        raise TypeError(f"the policy returned the state {state!r}: it is a dict")
    return max(0.0, number), state


def _delayed(ctx: AutoscalingContext, wanted: int, timer: Any) -> tuple[int, list[Any] | None, float]:
    """The number once it was wanted for long enough; the timer [direction, since when]; for how long it was wanted.

    A timer begins anew whenever the number agrees with the target, or turns round.
    """
    target, config = ctx.target_num_replicas, ctx.config
    if wanted == target:
        return target, None, 0.0
    if wanted > target:
        direction, delay_s = "up", config.upscale_delay_s
    elif target == 1:
        direction, delay_s = "down", _to_zero_delay_s(config)
    else:  # to zero only from one
        direction, delay_s, wanted = "down", config.downscale_delay_s, max(1, wanted)
    since = min(timer[1], ctx.current_time) if timer and timer[0] == direction else ctx.current_time
    waited_s = ctx.current_time - since
    if waited_s < delay_s:
        return target, [direction, since], waited_s
    return wanted, None, waited_s


def _to_zero_delay_s(config: AutoscalingConfig) -> float:
    to_zero_s = config.downscale_to_zero_delay_s
    return config.downscale_delay_s if to_zero_s is None else to_zero_s


# By what the queue knows


def queue_policy(ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """The default policy: Ray Serve's fields and delays, and what a queue knows exactly.

    From zero it starts what the calls ask for. A backlog is met at once, with as many replicas as take it in time, from
    the measured service time and arrivals. It goes down to the most that was needed during the delay.
    """
    verdict = _by_queue(ctx)
    return float(verdict.target), verdict.state


def _by_queue(ctx: AutoscalingContext) -> Verdict:
    memory = dict(ctx.policy_state.get(_QUEUE) or {})
    target, now = ctx.target_num_replicas, ctx.current_time
    wanted = scaled(ctx.current_num_replicas, _desired(ctx), ctx.config)
    woke_at = now if target == 0 else memory.get("woke_at")
    is_starting = ctx.current_num_replicas == 0 and woke_at is not None and 0 <= now - woke_at <= _BURST_S
    at_once, why = _from_zero(ctx) if target == 0 or is_starting else _at_once(ctx)
    over_since = min(memory.get("over_since") or now, now) if wanted > target else None
    need = max(at_once, _ceil(_desired(ctx)))
    peaks = _peaks(memory.get("peaks") or [], now, need, cool_down_s(ctx))
    idle_since = _idle_since(ctx, memory)
    since = memory.get("since", now) if 0 <= now - memory.get("seen", now) <= _GAP_S else now
    state = {
        "peaks": peaks,
        "since": since,
        "seen": now,
        "over_since": over_since,
        "idle_since": idle_since,
        "woke_at": woke_at,
    }
    if at_once > target:
        return Verdict(at_once, {_QUEUE: state}, why)
    if over_since is not None and now - over_since >= ctx.config.upscale_delay_s:
        reason = f"{_load(ctx)} ask for {_replicas(wanted)} at {ctx.config.target_ongoing_requests:g} each"
        state["over_since"] = None
        return Verdict(wanted, {_QUEUE: state}, _since(reason, now - over_since))
    lower, why = _lower(ctx, peaks[0][1], since, idle_since)
    return Verdict(min(target, lower), {_QUEUE: state}, why)


def _desired(ctx: AutoscalingContext) -> float:
    """Replicas for the load over the look-back period, as Ray Serve has it; a backlog counts as what it takes.

    Calls that wait for replicas that are on their way say nothing of how many are needed then.
    """
    config = ctx.config
    load = ctx.total_num_requests
    if ctx.service_time_s is not None and _may_act_at_once(config):
        running = ctx.aggregated_metrics.get(RUNNING, ctx.total_running_requests)
        load = min(load, max(ctx.arrival_rate * ctx.service_time_s, running))
    return load / config.target_ongoing_requests


def _from_zero(ctx: AutoscalingContext) -> tuple[int, str]:
    """How many replicas a deployment that had none is started with, and why; 0 when no call is there."""
    each = ctx.config.target_ongoing_requests
    number = _ceil((ctx.total_queued_requests + ctx.total_running_requests) / each)
    return number, f"{_calls(ctx)}, and no replica runs: {_replicas(number)} at {each:g} each"


def _at_once(ctx: AutoscalingContext) -> tuple[int, str]:
    """How many replicas are needed without any delay, and why; 0 when none is."""
    config = ctx.config
    if ctx.total_queued_requests == 0 or ctx.service_time_s is None or not _may_act_at_once(config):
        return 0, ""
    within_s = config.target_queue_wait_s or _DRAIN_S
    number = _ceil(_to_drain(ctx, ctx.service_time_s, within_s))
    pace = f"{ctx.arrival_rate:.3g} more a second at {ctx.service_time_s:.3g} s each"
    return number, f"{_calls(ctx)}, {pace}: {_replicas(number)} to have them taken within {within_s:g} s"


def _may_act_at_once(config: AutoscalingConfig) -> bool:
    """Whether a backlog may be met without a delay: not where the user has set one."""
    return config.target_queue_wait_s is not None or "upscale_delay_s" not in config.model_fields_set


def _to_drain(ctx: AutoscalingContext, service_s: float, within_s: float) -> float:
    """Replicas that carry what arrives, and take what waits within that time. Source: Little's law."""
    slots = ctx.max_ongoing_requests
    gained = ctx.arrival_rate - ctx.current_num_replicas * slots / service_s
    backlog = ctx.total_queued_requests + max(0.0, gained) * (ctx.cold_start_s or 0.0)
    usable = _USABLE * slots
    # No more than what each of the waiting calls would get for itself.
    for_backlog = min(backlog * service_s / within_s / usable, backlog / min(slots, ctx.config.target_ongoing_requests))
    return ctx.arrival_rate * service_s / usable + for_backlog


def cool_down_s(ctx: AutoscalingContext) -> float:
    """How long the load must have been lower before replicas go.

    The user's delay; else as long as a new replica's start is worth. Twice that when the last time was too early: so
    that there is one reversal in a cool-down at the most.
    """
    delay_s = ctx.config.downscale_delay_s
    if "downscale_delay_s" not in ctx.config.model_fields_set:
        worth_s = inf if ctx.cold_start_s is None else _STARTS_WORTH * ctx.cold_start_s
        delay_s = min(_LONGEST_COOL_DOWN_S, max(_SHORTEST_COOL_DOWN_S, worth_s))
    up, down = ctx.last_scale_up_time, ctx.last_scale_down_time
    was_too_early = up is not None and down is not None and 0 <= up - down < delay_s
    return 2 * delay_s if was_too_early else delay_s


def _peaks(before: list[list[float]], now: float, need: int, cool_down: float) -> list[list[float]]:
    """The needs of the cool-down that no later one exceeds, the highest first: [when, how many]."""
    peaks = [[min(at, now), peak] for at, peak in before if at > now - cool_down and peak > need]
    return [*peaks, [now, need]]


def _idle_since(ctx: AutoscalingContext, memory: dict[str, Any]) -> float | None:
    if ctx.total_queued_requests or ctx.total_running_requests or ctx.new_requests:
        return None
    since: float | None = memory.get("idle_since")
    return ctx.current_time if since is None else min(since, ctx.current_time)


def _lower(ctx: AutoscalingContext, peak: float, since: float, idle_since: float | None) -> tuple[int, str]:
    """How far the number may go down now, and why. To zero only when no call has come during its own delay."""
    now, target, cool_down = ctx.current_time, ctx.target_num_replicas, cool_down_s(ctx)
    is_stepping = ctx.config.downscaling_factor is not None and ctx.last_scale_down_time is not None
    steps_since = max(since, ctx.last_scale_down_time or 0.0) if is_stepping else since
    if now - steps_since < cool_down and target > 1:
        return target, ""
    lower = max(1, scaled(ctx.current_num_replicas, peak, ctx.config)) if target > 1 else 1
    to_zero_s = ctx.config.downscale_to_zero_delay_s
    to_zero_s = cool_down if to_zero_s is None else max(to_zero_s, cool_down if target > 1 else 0.0)
    may_be_zero = lower == 1 and ctx.capacity_adjusted_min_replicas == 0
    if may_be_zero and idle_since is not None and now - idle_since >= to_zero_s:
        return 0, f"no call for {now - idle_since:.0f} s"
    return lower, f"{_calls(ctx)}; no more than {_replicas(lower)} needed for {cool_down:.0f} s"


# Words


def _calls(ctx: AutoscalingContext) -> str:
    return f"{ctx.total_queued_requests:g} waiting and {ctx.total_running_requests:g} running calls"


def _load(ctx: AutoscalingContext) -> str:
    """The calls, and what they are over the look-back period when that is another number."""
    if ctx.total_num_requests == ctx.total_queued_requests + ctx.total_running_requests:
        return _calls(ctx)
    over = f"{ctx.config.aggregation_function} over {ctx.config.look_back_period_s:g} s"
    return f"{_calls(ctx)} ({ctx.total_num_requests:.3g}: the {over})"


def _since(reason: str, held_s: float) -> str:
    return f"{reason}, for {held_s:.0f} s now" if held_s >= 1 else reason


def _replicas(number: int) -> str:
    return "1 replica" if number == 1 else f"{number} replicas"
