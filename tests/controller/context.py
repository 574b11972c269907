"""What a policy is told, for tests: only what matters is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qserve.config import AutoscalingConfig, AutoscalingContext
from qserve.controller.autoscale import Policy, Verdict, decide


def context(
    current: int = 1,
    waiting: float = 0,
    running: float = 0,
    *,
    target: int | None = None,
    now: float = 1000.0,
    config: dict[str, Any] | None = None,
    **fields: Any,
) -> AutoscalingContext:
    """A deployment with `current` replicas; the load over the look-back period is the present one unless given."""
    options = AutoscalingConfig(**({"min_replicas": 0, "max_replicas": 100} | (config or {})))
    base: dict[str, Any] = {
        "deployment_name": "Echo",
        "app_name": "app",
        "config": options,
        "current_num_replicas": current,
        "target_num_replicas": current if target is None else target,
        "total_num_requests": waiting + running,
        "total_queued_requests": waiting,
        "total_running_requests": running,
        "current_time": now,
        "capacity_adjusted_min_replicas": options.min_replicas,
        "capacity_adjusted_max_replicas": options.max_replicas,
    }
    return AutoscalingContext(**(base | fields))


class Life:
    """A deployment over time under one policy: its state and its target are carried on; replicas obey at once."""

    def __init__(self, policy: Policy, current: int = 1, **config: Any) -> None:
        self.policy = policy
        self.config = config
        self.current = self.target = current
        self.now = 1000.0
        self.state: dict[str, Any] = {}
        self.times: dict[str, float | None] = {"last_scale_up_time": None, "last_scale_down_time": None}
        self.verdict: Verdict | None = None

    def look(self, waiting: float = 0, running: float = 0, *, after_s: float = 0.0, **fields: Any) -> int:
        """One look, `after_s` later. Returns the target."""
        self.now += after_s
        told = context(self.current, waiting, running, target=self.target, now=self.now, config=self.config)
        told = replace(told, policy_state=self.state, **{**self.times, **fields})
        verdict = self.verdict = decide(told, self.policy)
        self.state = verdict.state
        if verdict.target != self.target:
            self.times["last_scale_up_time" if verdict.target > self.target else "last_scale_down_time"] = self.now
        self.current = self.target = verdict.target
        return self.target

    def looks(self, seconds: int, waiting: float = 0, running: float = 0, **fields: Any) -> list[int]:
        """A look each second for so long. Returns the targets."""
        return [self.look(waiting, running, after_s=1.0, **fields) for _ in range(seconds)]
