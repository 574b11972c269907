"""Calls that run later: what `handle.options(delay_s=..., at=...)` takes, and the response of such a call."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TypeVar

from qserve.client.response import Callback, DeploymentResponse
from qserve.errors import UsageError
from qserve.store.delayed import Due

R = TypeVar("R")
MOST_DELAY_S = 366 * 86_400.0


def due(delay_s: float | None, at: datetime | float | None, now_s: float) -> Due | None:
    """When a call is to run; None: at once. So is a moment that has passed.

    delay_s  seconds from when Redis takes the call, at most a year
    at       a moment within a year: a datetime with its timezone, or seconds of the epoch
    now_s    seconds of the epoch
    Raises UsageError for both, and for anything else.
    """
    if delay_s is not None and at is not None:
        raise UsageError(f"delay_s={delay_s!r} and at={at!r} say two things: give one of them.")
    if delay_s is not None:
        return _after(_number("delay_s", delay_s), delay_s)
    return None if at is None else _at(_epoch(at), at, now_s)


def _after(seconds: float, given: object) -> Due | None:
    if not 0 <= seconds <= MOST_DELAY_S:
        raise UsageError(f"delay_s={given!r}: a call is delayed by 0 s to {MOST_DELAY_S:g} s (a year).")
    return Due(round(seconds * 1000), after=True) if seconds else None


def _at(epoch_s: float, given: object, now_s: float) -> Due | None:
    if not epoch_s <= now_s + MOST_DELAY_S:
        raise UsageError(f"at={given!r}: that is more than a year ahead. Numbers are seconds of the epoch.")
    return Due(round(epoch_s * 1000), after=False) if epoch_s > now_s else None


def _epoch(at: datetime | float) -> float:
    if not isinstance(at, datetime):
        return _number("at", at)
    if at.tzinfo is None:
        raise UsageError(
            f"at={at!r} has no timezone: it would mean another moment on each host. Write datetime(..., tzinfo=UTC), "
            "or at.astimezone() for this host's."
        )
    return at.timestamp()


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{name}={value!r}: that is no {'number of seconds' if name == 'delay_s' else 'moment'}.")
    return float(value)


class DelayedResponse(DeploymentResponse[R]):
    """The answer of a call that runs later. While nobody waits for it, only its user keeps it: a year is long."""

    __slots__ = ()

    def when_done(self, callback: Callback) -> None:
        super().when_done(callback)
        # Asked after the callback was added: the core asks for waiters after it has set `confirmed`.
        if self.confirmed and not self.done() and not self._carrier.closed:
            self._carrier.hold(self)
