"""What a deployment's depths say over time: its load, how fast calls arrive, how long they take. Pure.

Nothing is counted anywhere but in the queue itself: arrivals are the entries ever added to it, completions are the
arrivals that are no longer there, and the service time follows from both by Little's law.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp

from qserve.options import AutoscalingContext

# The names in `aggregated_metrics` and `raw_metrics` of the calls that run, and of those that wait.
RUNNING = "running"
WAITING = "waiting"

# Over how long arrivals are counted for the present rate: the noise of a few calls, against noticing a rush late.
RATE_S = 10.0
# Calls of one burst are no pace: what came in a shorter time is taken as if it had come in this.
_BURST_S = 5.0
# How long a measured service time is remembered while the deployment works.
_MEMORY_S = 120.0
# Looks further apart than this say too little about what happened between them.
_GAP_S = 2.5


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a deployment. `arrived`: calls ever added to its queue; None: nobody counted, nothing was there."""

    at_s: float
    waiting: int
    running: int
    oldest_wait_s: float = 0.0
    arrived: int | None = None

    @property
    def total(self) -> int:
        """Calls that wait or run."""
        return self.waiting + self.running


class Meter:
    """The samples of one deployment, as far back as they are asked for."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque()
        self._new = 0
        self._busy_s = 0.0
        self._done = 0.0

    def add(self, sample: Sample, look_back_s: float) -> None:
        """Take a look in; forget what lies further back than `look_back_s`, but for the state at its beginning."""
        self._new = 0
        if self.samples and self.samples[-1].at_s > sample.at_s:  # the clock was put back
            self.samples.clear()
        if self.samples:
            self._count(self.samples[-1], sample)
        self.samples.append(sample)
        since = sample.at_s - max(look_back_s, RATE_S)
        while len(self.samples) > 1 and self.samples[1].at_s <= since:
            self.samples.popleft()

    def _count(self, before: Sample, sample: Sample) -> None:
        """Measure between two looks that are close together."""
        if sample.arrived is None:
            return
        if before.arrived is None or before.arrived > sample.arrived:
            # It was quiet, or its queue is new: what came and went unseen is not counted.
            before = Sample(before.at_s, before.waiting, before.running, 0.0, sample.arrived - sample.total)
            self.samples[-1] = before
        assert before.arrived is not None
        self._new = sample.arrived - before.arrived
        passed_s = sample.at_s - before.at_s
        if not 0 < passed_s <= _GAP_S:
            return
        done = self._new - (sample.total - before.total)
        faded = exp(-passed_s / _MEMORY_S)
        self._busy_s = faded * self._busy_s + passed_s * (before.running + sample.running) / 2
        self._done = faded * self._done + max(0, done)

    @property
    def service_time_s(self) -> float | None:
        """Mean time that a call holds a slot: time in slots, by calls. None before any call ran.

        Those that run count as if they were done, the less the more have finished: while none has, it is how long they
        take at least.
        """
        if not self._busy_s:
            return None
        running = self.samples[-1].running
        unfinished = running * running / (running + self._done) if running else 0.0
        return self._busy_s / max(1.0, self._done + unfinished)

    @property
    def arrival_rate(self) -> float:
        """Calls per second over the last RATE_S; 0 when nobody counted."""
        counted = [sample for sample in self.samples if sample.arrived is not None]
        if len(counted) < 2 or counted[-1] is not self.samples[-1]:
            return 0.0
        last = counted[-1]
        first = next(s for s in counted if s.at_s >= last.at_s - RATE_S)
        if first is last:
            first = counted[-2]
        assert last.arrived is not None
        assert first.arrived is not None
        return max(0, last.arrived - first.arrived) / max(_BURST_S, last.at_s - first.at_s)

    def tell(self, ctx: AutoscalingContext) -> AutoscalingContext:
        """The context with all that was measured, up to the last look. `add` one first."""
        config, last = ctx.config, self.samples[-1]
        waiting = tuple((float(s.at_s), float(s.waiting)) for s in self.samples)
        running = tuple((float(s.at_s), float(s.running)) for s in self.samples)
        total = [(s.at_s, s.total) for s in self.samples]
        return replace(
            ctx,
            current_time=last.at_s,
            total_num_requests=aggregate(total, config.look_back_period_s, config.aggregation_function),
            total_queued_requests=last.waiting,
            total_running_requests=last.running,
            aggregated_metrics={
                WAITING: aggregate(waiting, config.look_back_period_s, "mean"),
                RUNNING: aggregate(running, config.look_back_period_s, "mean"),
            },
            raw_metrics={WAITING: waiting, RUNNING: running},
            oldest_wait_s=last.oldest_wait_s,
            service_time_s=self.service_time_s,
            arrival_rate=self.arrival_rate,
            new_requests=self._new,
        )


def aggregate(series: Sequence[tuple[float, float]], look_back_s: float, function: str) -> float:
    """The time-weighted mean, the max or the min of a series of (time, value), each of which holds until the next.

    Over `look_back_s` before the last of them, or from the first on if there are none as old. Source: Ray Serve.
    """
    if not series:
        return 0.0
    end = series[-1][0]
    since = max(end - look_back_s, series[0][0])
    ends = [at for at, _ in series[1:]] + [end]
    parts = [(value, until - max(at, since)) for (at, value), until in zip(series, ends, strict=True)]
    if function != "mean":
        values = [value for value, held_s in parts if held_s > 0] + [series[-1][1]]
        return max(values) if function == "max" else min(values)
    held_s = end - since
    if held_s <= 0:
        return series[-1][1]
    return sum(value * length_s for value, length_s in parts if length_s > 0) / held_s
