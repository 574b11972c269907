"""Calls on their way out: all calls of one turn of the event loop leave in one write, each stored once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qserve.client.response import DeploymentResponse
from qserve.errors import BackPressureError, DeploymentUnavailableError, QserveError, TransportError
from qserve.store import calls as store
from qserve.store.connection import refused, says_go_away
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.wire.keys import DeploymentKeys

# How long a call that Redis has not confirmed waits for Redis to come back before it fails.
ENQUEUE_TIMEOUT_S = 5.0
_MOST_BATCH_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Outgoing:
    """A sealed call and where its answer goes. `has_inputs`: it refers to other calls, which must be stored first."""

    response: DeploymentResponse[Any]
    envelope: bytes
    limit: int = -1
    has_inputs: bool = False


@dataclass(slots=True, eq=False)
class Batch:
    """Calls to one deployment that travel in one script."""

    keys: DeploymentKeys
    limit: int
    calls: list[Outgoing] = field(default_factory=list)
    size_bytes: int = 0

    def takes(self, call: Outgoing) -> bool:
        """Whether the call may join."""
        return (
            len(self.calls) < store.MOST_PER_SCRIPT
            and self.limit == call.limit
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
            batch = joinable[keys] = Batch(keys, call.limit)
            batches.append(batch)
        batch.calls.append(call)
        batch.size_bytes += len(call.envelope)
    return batches


class Outbox:
    """Sends what is added. A call that was not confirmed is sent again on the next connection, under the same id.

    ready     the pipe to use now; None while the connections are not up
    room      how many more calls may be unresolved
    on_send   a call leaves: its reply may come from now on
    on_fail   a call will never have a reply
    """

    def __init__(
        self,
        link: Link,
        ready: Callable[[], Pipe | None],
        room: Callable[[], int],
        on_send: Callable[[DeploymentResponse[Any]], None],
        on_fail: Callable[[DeploymentResponse[Any], QserveError], None],
    ) -> None:
        self._link = link
        self._ready = ready
        self._room = room
        self._on_send = on_send
        self._on_fail = on_fail
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Outgoing] = deque()
        self._again: list[Batch] = []
        self._travelling = 0
        self._moved = asyncio.Event()
        self._scheduled = False
        self._patience: asyncio.TimerHandle | None = None

    def add(self, call: Outgoing) -> None:
        """Send the call with all others of this turn of the loop."""
        self._queue.append(call)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

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
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
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

    def _send(self, pipe: Pipe, batch: Batch) -> None:
        self._travelling += 1
        pairs = [(call.response.call_id, call.envelope) for call in batch.calls]
        store.put(pipe, batch.keys, pairs, batch.limit, partial(self._confirm, batch))

    def _confirm(self, batch: Batch, reply: Any) -> None:
        self._travelling -= 1
        self._moved.set()
        if isinstance(reply, TransportError) or (isinstance(reply, Exception) and says_go_away(reply)):
            self._again.append(batch)
            self._be_patient()
        elif isinstance(reply, Exception):
            self._fail(batch.calls, lambda: refused(self._link.endpoint, reply))
        else:
            self._settle(batch, *reply)

    def _settle(self, batch: Batch, taken: int, waiting: int) -> None:
        for call in batch.calls[:taken]:
            call.response.confirmed = True
        refused = batch.calls[taken:]
        self._fail(refused, lambda: _gone(batch.keys) if waiting < 0 else BackPressureError(waiting, batch.limit))

    def _fail(self, calls: list[Outgoing], make_error: Callable[[], QserveError]) -> None:
        for call in calls:
            self._on_fail(call.response, make_error())

    def _be_patient(self) -> None:
        if self._patience is None:
            self._patience = self._loop.call_later(ENQUEUE_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        if self._ready() is not None:
            self.flush_soon()
            return
        error = self._link.error
        stuck = [call for batch in self._again for call in batch.calls] + list(self._queue)
        self._again.clear()
        self._queue.clear()
        self._moved.set()
        reason = str(error) if error else f"Redis at {self._link.endpoint} did not answer in {ENQUEUE_TIMEOUT_S:g} s."
        self._fail(stuck, lambda: type(error)(reason) if error else TransportError(reason))


def _gone(keys: DeploymentKeys) -> DeploymentUnavailableError:
    return DeploymentUnavailableError(
        f"Deployment {keys.deployment!r} of application {keys.app!r} is not deployed in namespace {keys.namespace!r}: "
        "it was deleted, or never was there. `qserve status` lists what is; deploy it with serve.run(...)."
    )
