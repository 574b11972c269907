"""The policies that are compared, each at work as its system runs it."""

from __future__ import annotations

from collections import deque
from math import ceil, inf
from typing import Any

from qserve.controller.autoscale import Policy, decide, look_every_s, queue_policy, ray_policy
from qserve.controller.meter import Meter
from qserve.options import AutoscalingConfig, AutoscalingContext
from scripts.simulator.queue import Autoscaler, Look, Trace

# KEDA's own defaults for a queue, and those of the HPA that it drives.
_POLLS_S = 30.0
_COOLDOWN_S = 300.0
_STABILISATION_S = 300.0
_TOLERANCE = 0.1
_LAG_PER_REPLICA = 5
_SYNC_S = 15.0
_STEP = 4


class Qserve:
    """A policy of qserve's as the controller runs it: its looks, its meter, its state."""

    def __init__(self, trace: Trace, policy: Policy, **options: Any) -> None:
        self.config = AutoscalingConfig(min_replicas=trace.min_replicas, max_replicas=trace.max_replicas, **options)
        self._policy = policy
        self._trace = trace
        self._meter = Meter()
        self._state: dict[str, Any] = {}
        self._up_at: float | None = None
        self._down_at: float | None = None

    def decide(self, look: Look) -> int:
        """One look, one decision."""
        now, sample, config = look.sample.at_s, look.sample, self.config
        self._meter.add(sample, config.look_back_period_s)
        ctx = AutoscalingContext(
            deployment_name="Simulated",
            app_name="default",
            config=config,
            current_num_replicas=look.running,
            target_num_replicas=look.target,
            total_num_requests=0,
            total_queued_requests=0,
            total_running_requests=0,
            current_time=now,
            capacity_adjusted_min_replicas=config.min_replicas,
            capacity_adjusted_max_replicas=config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=self._up_at,
            last_scale_down_time=self._down_at,
            max_ongoing_requests=self._trace.max_ongoing_requests,
            cold_start_s=look.cold_start_s,
        )
        verdict = decide(self._meter.tell(ctx), self._policy)
        self._state = verdict.state
        if verdict.target > look.target:
            self._up_at = now
        elif verdict.target < look.target:
            self._down_at = now
        return verdict.target

    def next_look_s(self, look: Look, target: int) -> float:
        """As the controller has it: seldom while there is nothing to do."""
        idle = not look.sample.total and look.running == target == self.config.min_replicas
        if idle and not target:
            return inf  # asleep: woken by the next call
        return look_every_s(self.config, idle=idle)


class RayServe(Qserve):
    """Ray Serve's policy, on figures that are exact and a second old at the most: its own are up to 10 s old."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace, ray_policy)

    def next_look_s(self, _look: Look, _target: int) -> float:
        """Each second."""
        return 1.0


class Keda:
    """KEDA on the length of the queue: it polls, an HPA steps; to and from zero it switches by itself."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._lag = 0
        self._polls_at = 0.0
        self._active_at = 0.0
        self._recommended: deque[tuple[float, int]] = deque()

    def decide(self, look: Look) -> int:
        """One turn of the HPA, on what the last poll saw."""
        now = look.sample.at_s
        if now >= self._polls_at:
            self._polls_at = now + _POLLS_S
            self._lag = look.sample.total
        if self._lag:
            self._active_at = now
        low, high = max(1, self._trace.min_replicas), self._trace.max_replicas
        if self._trace.min_replicas == 0 and look.target == 0:
            return 1 if self._lag else 0
        if self._trace.min_replicas == 0 and now - self._active_at >= _COOLDOWN_S:
            return 0
        number = ceil(self._lag / _LAG_PER_REPLICA)
        if abs(number / look.target - 1) <= _TOLERANCE:
            number = look.target
        number = min(high, max(low, number))
        self._recommended.append((now, number))
        while self._recommended[0][0] <= now - _STABILISATION_S:
            self._recommended.popleft()
        if number < look.target:
            return min(look.target, max(count for _, count in self._recommended))
        return min(number, max(2 * look.target, look.target + _STEP))

    def next_look_s(self, _look: Look, _target: int) -> float:
        """Each HPA sync."""
        return _SYNC_S


def ours(trace: Trace) -> Autoscaler:
    """qserve's default policy."""
    return Qserve(trace, queue_policy)


ALL = {"qserve": ours, "Ray Serve": RayServe, "KEDA": Keda}
