"""Calls on their way out: all calls of one turn of the event loop leave in one write, each stored once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qserve.client.inbox import made_at_s
from qserve.client.response import DeploymentResponse
from qserve.errors import BackPressureError, DeploymentUnavailableError, QserveError, TransportError
from qserve.store import calls as store
from qserve.store import delayed
from qserve.store.connection import refused, says_go_away
from qserve.store.delayed import Due
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.wire.keys import DeploymentKeys

# How long a call that Redis has not confirmed waits for Redis to come back before it fails.
ENQUEUE_TIMEOUT_S = 5.0
_LOOK_AGAIN_S = 0.25
_MOST_BATCH_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Outgoing:
    """A sealed call and where its answer goes.

    has_inputs  it refers to other calls, which must be stored first
    due         when it is to run; None: at once
    """

    response: DeploymentResponse[Any]
    envelope: bytes
    limit: int = -1
    has_inputs: bool = False
    due: Due | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """Calls to one deployment that travel in one script. `troubled_at`: when it first came back unconfirmed."""

    keys: DeploymentKeys
    limit: int
    is_delayed: bool = False
    calls: list[Outgoing] = field(default_factory=list)
    size_bytes: int = 0
    troubled_at: float | None = None

    def takes(self, call: Outgoing) -> bool:
        """Whether the call may join."""
        return (
            len(self.calls) < store.MOST_PER_SCRIPT
            and self.limit == call.limit
            and self.is_delayed == (call.due is not None)
            and self.size_bytes + len(call.envelope) <= _MOST_BATCH_BYTES
        )


def cut(queue: deque[Outgoing], most: int) -> list[Batch]:
    """Take up to `most` calls off the queue, in batches whose order keeps each call behind those it refers to."""
    batches: list[Batch] = []
    joinable: dict[DeploymentKeys, Batch] = {}
    while queue and most > 0:
        call = queue.popleft()
        most -= 1
        if call.has_inputs:
            joinable.clear()
        keys = call.response.keys
        batch = joinable.get(keys)
        if batch is None or not batch.takes(call):
            batch = joinable[keys] = Batch(keys, call.limit, call.due is not None)
            batches.append(batch)
        batch.calls.append(call)
        batch.size_bytes += len(call.envelope)
    return batches


class Outbox:
    """Sends what is added. A call that was not confirmed is sent again on the next connection, under the same id.

    Only a confirmation ends the wait for Redis: a server that takes connections and then refuses to serve does not.

    ready     the pipe to use now; None while the connections are not up
    room      how many more calls may be unresolved
    on_send   a call leaves: its reply may come from now on
    on_kept   Redis has a delayed call: its reply will come after its time
    on_fail   a call will never have a reply
    """

    def __init__(
        self,
        link: Link,
        ready: Callable[[], Pipe | None],
        room: Callable[[], int],
        on_send: Callable[[DeploymentResponse[Any]], None],
        on_kept: Callable[[DeploymentResponse[Any]], None],
        on_fail: Callable[[DeploymentResponse[Any], QserveError], None],
    ) -> None:
        self._link = link
        self._ready = ready
        self._room = room
        self._on_send = on_send
        self._on_kept = on_kept
        self._on_fail = on_fail
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Outgoing] = deque()
        self._again: list[Batch] = []
        self._travelling = 0
        self._moved = asyncio.Event()
        self._scheduled = False
        self._patience: asyncio.TimerHandle | None = None
        self._troubled_at = 0.0
        self._refusal: TransportError | None = None

    def add(self, call: Outgoing) -> None:
        """Send the call with all others of this turn of the loop."""
        self._queue.append(call)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def waiting(self) -> list[DeploymentResponse[Any]]:
        """The responses of calls that have not left yet."""
        return [call.response for call in self._queue]

    def find(self, call_id: bytes) -> DeploymentResponse[Any] | None:
        """The response of a call that has not left yet."""
        return next((call.response for call in self._queue if call.response.call_id == call_id), None)

    async def emptied(self) -> None:
        """Wait until Redis has confirmed or refused every call."""
        while self._queue or self._again or self._travelling:
            self._moved.clear()
            await self._moved.wait()

    def flush_soon(self) -> None:
        """Something has changed: there is a connection again, or room for more calls."""
        if not self._scheduled and (self._queue or self._again):
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        pipe = self._ready()
        if pipe is None:
            self._be_patient()
            return
        again, self._again = self._again, []
        for batch in again:
            # What has its answer was put, and its record may be consumed by now: put again, it would run twice.
            batch.calls = [call for call in batch.calls if not call.response.done()]
            if batch.calls:
                self._send(pipe, batch)
            else:
                self._moved.set()
        for batch in cut(self._queue, self._room()):
            for call in batch.calls:
                self._on_send(call.response)
            self._send(pipe, batch)
        if self._patience is not None and not self._travelling and not self._again:
            self._end_patience()  # all that waits, waits for room

    def _send(self, pipe: Pipe, batch: Batch) -> None:
        self._travelling += 1
        on_reply = partial(self._confirm, batch)
        if batch.is_delayed:
            later = [(call.response.call_id, call.envelope, call.due) for call in batch.calls if call.due is not None]
            delayed.put(pipe, batch.keys, later, on_reply)
            return
        pairs = [(call.response.call_id, call.envelope) for call in batch.calls]
        store.put(pipe, batch.keys, pairs, batch.limit, on_reply)

    def _confirm(self, batch: Batch, reply: Any) -> None:
        self._travelling -= 1
        self._moved.set()
        if isinstance(reply, Exception):
            self._come_back(batch, reply)
        else:
            self._settle(batch, *reply)

    def _come_back(self, batch: Batch, error: Exception) -> None:
        if not isinstance(error, TransportError):
            if not says_go_away(error):
                self._end_patience()
                self._fail(batch.calls, lambda: refused(self._link.endpoint, error))
                return
            error = refused(self._link.endpoint, error)
        self._refusal = error
        self._again.append(batch)
        self._be_patient()
        if batch.troubled_at is None:
            batch.troubled_at = self._troubled_at
        if self._loop.time() - batch.troubled_at >= ENQUEUE_TIMEOUT_S:
            self._fail_late_ones()

    def _settle(self, batch: Batch, taken: int, waiting: int) -> None:
        if self._patience is not None:
            self._end_patience()
        for call in batch.calls[:taken]:
            call.response.confirmed = True
        if batch.is_delayed:
            for call in batch.calls[:taken]:
                self._on_kept(call.response)
            self.flush_soon()  # they take no room any more
        refused = batch.calls[taken:]
        self._fail(refused, lambda: _gone(batch.keys) if waiting < 0 else BackPressureError(waiting, batch.limit))

    def _fail(self, calls: list[Outgoing], make_error: Callable[[], QserveError]) -> None:
        for call in calls:
            self._on_fail(call.response, make_error())

    def _be_patient(self) -> None:
        if self._patience is None:
            self._troubled_at = self._loop.time()
            self._patience = self._loop.call_later(ENQUEUE_TIMEOUT_S, self._look_at_the_clock)

    def _end_patience(self) -> None:
        self._troubled_at = self._loop.time()  # for what waits in the queue; a batch that came back has its own
        if self._patience is not None and not self._again:
            self._patience.cancel()
            self._patience = None

    def _look_at_the_clock(self) -> None:
        self._patience = None
        self._fail_late_ones()
        if self._queue or self._again or self._travelling:
            self._patience = self._loop.call_later(_LOOK_AGAIN_S, self._look_at_the_clock)
            self.flush_soon()

    def _fail_late_ones(self) -> None:
        """Fail the calls whose time is up, and only those: others were made, or came back, later."""
        late = self._take_late_ones()
        self._moved.set()
        error = self._link.error or self._refusal
        reason = str(error) if error else f"Redis at {self._link.endpoint} did not answer in {ENQUEUE_TIMEOUT_S:g} s."
        self._fail(late, lambda: type(error)(reason) if error else TransportError(reason))

    def _take_late_ones(self) -> list[Outgoing]:
        now_s, troubled_before = time.time(), self._loop.time() - ENQUEUE_TIMEOUT_S
        late: list[Outgoing] = []
        for batch in self._again:
            if batch.troubled_at is not None and batch.troubled_at <= troubled_before:
                late += [call for call in batch.calls if _is_late(call, now_s)]
                batch.calls = [call for call in batch.calls if not _is_late(call, now_s)]
        self._again = [batch for batch in self._again if batch.calls]
        if self._troubled_at <= troubled_before:
            while self._queue and _is_late(self._queue[0], now_s):
                late.append(self._queue.popleft())
        return late


def _is_late(call: Outgoing, now_s: float) -> bool:
    # A negative age: the clock was set back. The trouble has lasted long enough all the same.
    return not 0 <= now_s - made_at_s(call.response.call_id) < ENQUEUE_TIMEOUT_S


def _gone(keys: DeploymentKeys) -> DeploymentUnavailableError:
    return DeploymentUnavailableError(
        f"Deployment {keys.deployment!r} of application {keys.app!r} is not deployed in namespace {keys.namespace!r}: "
        "it was deleted, or never was there. `qserve status` lists what is; deploy it with serve.run(...)."
    )
