"""When a cron expression is due. Pure: time comes in as an argument. The only module that imports cronsim."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from qserve.errors import MissingExtra, UsageError


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be done now. Times are seconds of the epoch.

    due_s   the run to make: the latest that is due and not too late; None when there is none
    next_s  the first run that is not due yet
    """

    due_s: float | None
    next_s: float


def next_after(expression: str, timezone: str, after_s: float) -> float:
    """The first moment after `after_s` at which the expression is due, in seconds of the epoch.

    expression  minute, hour, day, month, weekday; or six fields, of which the first are seconds
    timezone    of the IANA database, as "Europe/Vienna". A time that the clocks skip is due when they are past it, one
                that they repeat is due once
    Raises UsageError for a wrong expression or timezone, MissingExtra without cronsim.
    """
    return next(_dues(expression, timezone, after_s))


def turn(expression: str, timezone: str, *, since_s: float, now_s: float, grace_s: float) -> Turn:
    """Which run to make at `now_s`: of those that were missed the latest only, and only if it is not too late.

    since_s  runs up to here do not count
    grace_s  how late a run may be
    """
    latest = None
    for due_s in _dues(expression, timezone, max(since_s, now_s - grace_s - 1)):
        if due_s > now_s:
            return Turn(latest, due_s)
        if now_s - due_s <= grace_s:
            latest = due_s
    raise AssertionError("there is always a next one")


def _dues(expression: str, timezone: str, after_s: float) -> Iterator[float]:
    """The moments after `after_s`, ascending, without end."""
    CronSim, CronSimError = _cronsim()  # noqa: N806 (they are classes)
    zone = _zone(timezone)
    if not isinstance(expression, str):
        raise UsageError(f"The cron expression {expression!r} is no text: write '*/5 * * * *'.")
    try:
        moments = CronSim(expression, datetime.fromtimestamp(after_s, zone))
    except CronSimError as error:
        raise UsageError(
            f"The cron expression {expression!r} cannot be read: {error}. It has five fields, as '*/5 * * * *': "
            "minute, hour, day, month and weekday; or six, of which the first are seconds."
        ) from error
    last_s = after_s
    for moment in moments:
        due_s = moment.timestamp()
        if due_s > last_s:  # an hour that the clocks repeat would go back
            last_s = due_s
            yield due_s
    raise UsageError(f"The cron expression {expression!r} is never due.")


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UsageError(
            f"The timezone {name!r} is not known: write one as 'Europe/Vienna'. If it is right, this host lacks the "
            "database: pip install tzdata"
        ) from error


def _cronsim() -> tuple[type, type[Exception]]:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise MissingExtra(
            "Recurring calls need cronsim: pip install cronsim. The host that runs `qserve scheduler` needs "
            "pip install 'qserve[cli,scheduler]'."
        ) from error
    return CronSim, CronSimError
