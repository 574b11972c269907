"""Recurring calls: register, list and remove them. `qserve scheduler` makes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

from qserve.client import portal
from qserve.client.handle import DeploymentHandle, parts_of
from qserve.config import RESULT_TTL_S
from qserve.errors import MissingExtra, UsageError
from qserve.scheduling import crontab
from qserve.store.crons import CronRecord, Crons
from qserve.store.state import ClusterState
from qserve.wire import codec

T = TypeVar("T")
DEFAULT_GRACE_S = 60.0
# The record of a run's call must still be there when somebody fires it again.
MOST_GRACE_S = RESULT_TTL_S


@dataclass(frozen=True, slots=True)
class Cron:
    """A recurring call, as `crons()` lists it.

    next_s  when it runs next, in seconds of the epoch; None where cronsim is not installed
    """

    name: str
    expression: str
    timezone: str
    app_name: str
    deployment_name: str
    method_name: str
    misfire_grace_s: float
    next_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def cron(
    expression: str,
    handle: DeploymentHandle[Any],
    /,
    *args: Any,
    name: str | None = None,
    timezone: str = "UTC",
    misfire_grace_s: float = DEFAULT_GRACE_S,
    **kwargs: Any,
) -> Cron:
    """Call `handle` again and again: `serve.cron("*/5 * * * *", handle.method, 1, name="tidy")`.

    A `qserve scheduler` must run. One of the same name is replaced; registered again unchanged, it goes on.

    expression       minute, hour, day, month, weekday; or six fields, of which the first are seconds
    args, kwargs     what each run is called with, pickled now
    name             for `uncron`; else application, deployment and method
    timezone         in which the expression is read, as "Europe/Vienna"
    misfire_grace_s  how late a run may be, up to an hour. When no scheduler could make it in that time it is left out;
                     of several that were missed the latest is made
    Raises UsageError for anything wrong in these, SerializationError, PayloadTooLarge, MissingExtra without cronsim.
    """
    schedule = _Schedule(expression, timezone, misfire_grace_s, time.time())
    next_s = crontab.next_after(expression, timezone, schedule.since_s)
    if not 0 <= misfire_grace_s <= MOST_GRACE_S:
        raise UsageError(f"misfire_grace_s={misfire_grace_s!r} is not within 0..{MOST_GRACE_S:g} seconds.")
    record = _record(schedule, handle, args, kwargs, name)
    return _shown(_on_portal(lambda kept: kept.register(record)), next_s)


def crons() -> list[Cron]:
    """The recurring calls of the namespace, by name."""
    found = _on_portal(lambda kept: kept.all())
    return [_shown(record, _next_s(record)) for _, record in sorted(found.items())]


def uncron(name: str) -> bool:
    """End a recurring call; a run that has begun goes on. False when there is none of that name."""
    return _on_portal(lambda kept: kept.remove(name))


class _Schedule(NamedTuple):
    expression: str
    timezone: str
    misfire_grace_s: float
    since_s: float


def _record(
    schedule: _Schedule,
    handle: DeploymentHandle[Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str | None,
) -> CronRecord:
    if not isinstance(handle, DeploymentHandle):
        raise UsageError(f"serve.cron() calls a handle, as in serve.cron('* * * * *', handle.method); got {handle!r}.")
    parts = parts_of(handle)
    path = f"{parts.app}.{parts.deployment}.{parts.method}"
    if parts.due is not None:
        raise UsageError(f"serve.cron() says when {path} is called: its handle must have no delay_s or at.")
    chosen = path if name is None else name
    if not isinstance(chosen, str) or not chosen or set(chosen) & set(":{} \n\t"):
        raise UsageError(f"The name {chosen!r} is empty, or holds one of ':{{}}' or a space.")
    encoded = codec.encode_arguments(args, kwargs, parts.serializer, f"The recurring call {chosen!r}")
    if encoded.references:
        raise UsageError("A recurring call cannot take responses: their results are gone by then. Pass the values.")
    return CronRecord(
        name=chosen,
        app=parts.app,
        deployment=parts.deployment,
        method=parts.method,
        payload=bytes(encoded.data),
        serializer=parts.serializer,
        flags=encoded.flags,
        limit=parts.limit,
        **schedule._asdict(),
    )


def _shown(record: CronRecord, next_s: float | None) -> Cron:
    return Cron(
        record.name,
        record.expression,
        record.timezone,
        record.app,
        record.deployment,
        record.method,
        record.misfire_grace_s,
        next_s,
    )


def _next_s(record: CronRecord) -> float | None:
    try:
        return crontab.next_after(record.expression, record.timezone, time.time())
    except (MissingExtra, UsageError):  # registered by a host that can read it
        return None


def _on_portal(work: Callable[[Crons], Coroutine[Any, Any, T]]) -> T:
    """Run work on the recurring calls in the portal's thread, and wait for it."""
    door = portal.portal()
    core = door.core
    return door.run(work(Crons(ClusterState(core.link, core.settings.namespace, core.ring), core.ring)))
