"""A deployment as a simulation: calls arrive, wait in one queue, and run in the slots of replicas that come and go."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, pairwise
from math import inf
from typing import Protocol

from qserve.controller.meter import Sample


@dataclass(frozen=True)
class Trace:
    """Calls as (when, for how long), in order of time, and the deployment that they come to. Seconds throughout."""

    name: str
    calls: Sequence[tuple[float, float]]
    lasts_s: float
    min_replicas: int
    max_replicas: int
    initial_replicas: int
    cold_start_s: float
    max_ongoing_requests: int


@dataclass(frozen=True)
class Look:
    """What a policy is shown: the queue, and how many replicas run, are wanted, and took how long to start."""

    sample: Sample
    running: int
    target: int
    cold_start_s: float | None


class Autoscaler(Protocol):
    """A policy at work."""

    def decide(self, look: Look) -> int:
        """The number of replicas from now on."""

    def next_look_s(self, look: Look, target: int, /) -> float:
        """After how many seconds it looks again; inf: when a call comes."""


@dataclass
class Replica:
    """One replica: its slots are taken by `running` calls."""

    created_s: float
    running: int = 0
    is_up: bool = False
    leaves: bool = False


@dataclass
class Outcome:
    """What came of it: each call's wait, the replicas' time; targets and waiting calls as (when, how many)."""

    waits_s: list[float] = field(default_factory=list)
    replica_s: float = 0.0
    targets: list[tuple[float, int]] = field(default_factory=list)
    waiting: list[tuple[float, int]] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """The wait that this share of the calls did not exceed; by nearest rank."""
        ordered = sorted(self.waits_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    @property
    def reversals(self) -> int:
        """How often the target turned round: up after down, or down after up."""
        numbers = [number for _, number in self.targets]
        steps = [after > before for before, after in pairwise(numbers) if after != before]
        return sum(step != before for before, step in pairwise(steps))


class Simulation:
    """One trace under one policy, event by event."""

    def __init__(self, trace: Trace, scaler: Autoscaler) -> None:
        self.trace = trace
        self.scaler = scaler
        self.out = Outcome()
        self._replicas: list[Replica] = []
        self._slots: deque[Replica] = deque()
        self._waiting: deque[tuple[float, float]] = deque()
        self._starting: deque[tuple[float, Replica]] = deque()
        self._ending: list[tuple[float, int, Replica]] = []
        self._number = count()
        self._busy = 0
        self._arrived = 0
        self._target = 0
        self._cold_start_s: float | None = None

    def run(self) -> Outcome:
        """To the end of the trace, and on until each call has begun."""
        self._scale(0.0, self.trace.initial_replicas, is_up=True)
        calls, ending, starting = self.trace.calls, self._ending, self._starting
        index, looks_s = 0, 0.0
        while True:
            arrives_s = calls[index][0] if index < len(calls) else inf
            ends_s = ending[0][0] if ending else inf
            ready_s = starting[0][0] if starting else inf
            now = min(arrives_s, ends_s, ready_s, looks_s)
            if now > self.trace.lasts_s and arrives_s == inf and not self._waiting:
                return self._finish()
            if now == arrives_s:
                index += 1
                self._arrived += 1
                self._waiting.append(calls[index - 1])
                looks_s = now if looks_s == inf else looks_s
                self._fill(now)
            elif now == ends_s:
                self._end(now, heappop(ending)[2])
            elif now == ready_s:
                self._come_up(now, starting.popleft()[1])
            else:
                looks_s = now + self._look(now)

    # Calls

    def _fill(self, now: float) -> None:
        waiting, slots = self._waiting, self._slots
        while waiting and slots:
            replica = slots.popleft()
            if replica.leaves:
                continue
            arrived_s, lasts_s = waiting.popleft()
            replica.running += 1
            self._busy += 1
            self.out.waits_s.append(now - arrived_s)
            heappush(self._ending, (now + lasts_s, next(self._number), replica))

    def _end(self, now: float, replica: Replica) -> None:
        replica.running -= 1
        self._busy -= 1
        if not replica.leaves:
            self._slots.append(replica)
            self._fill(now)
        elif not replica.running:
            self._count(now, replica)

    # Replicas

    def _look(self, now: float) -> float:
        oldest_s = now - self._waiting[0][0] if self._waiting else 0.0
        sample = Sample(now, len(self._waiting), self._busy, oldest_s, self._arrived)
        running = sum(replica.is_up for replica in self._replicas)
        look = Look(sample, running, self._target, self._cold_start_s)
        target = self.scaler.decide(look)
        if now <= self.trace.lasts_s:
            self.out.waiting.append((now, sample.waiting))
        if target != self._target:
            self._scale(now, target)
        return self.scaler.next_look_s(look, target)

    def _scale(self, now: float, target: int, *, is_up: bool = False) -> None:
        self._target = target
        self.out.targets.append((now, target))
        for _ in range(len(self._replicas), target):
            replica = Replica(now)
            self._replicas.append(replica)
            if is_up:
                self._come_up(now, replica)
            else:
                self._starting.append((now + self.trace.cold_start_s, replica))
        # Those that still start go first, then the idlest.
        for replica in sorted(self._replicas, key=lambda r: (r.is_up, r.running))[: len(self._replicas) - target]:
            replica.leaves = True
            self._replicas.remove(replica)
            if not replica.running:
                self._count(now, replica)

    def _come_up(self, now: float, replica: Replica) -> None:
        if replica.leaves:
            return
        if now > replica.created_s:
            self._cold_start_s = now - replica.created_s
        replica.is_up = True
        self._slots.extend([replica] * self.trace.max_ongoing_requests)
        self._fill(now)

    def _count(self, now: float, replica: Replica) -> None:
        """The replica is gone; what it lasted beyond the trace does not count."""
        end_s = self.trace.lasts_s
        self.out.replica_s += max(0.0, min(now, end_s) - min(replica.created_s, end_s))

    def _finish(self) -> Outcome:
        leaving = {id(replica): replica for _, _, replica in self._ending if replica.leaves}
        for replica in [*self._replicas, *leaving.values()]:
            self._count(self.trace.lasts_s, replica)
        return self.out
