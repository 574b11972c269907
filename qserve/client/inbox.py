"""Replies on their way in: the responses still open, the notes that resolve them, and the sweep that trusts no note.

A note is a hint, the record in Redis is the truth: after a reconnect, and every few seconds, open calls are looked up.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from qserve.client.response import DeploymentResponse
from qserve.errors import CallLost, QserveError, SignatureError, TransportError
from qserve.store import replies as store
from qserve.store.link import Link
from qserve.wire import codec
from qserve.wire.keys import DeploymentKeys
from qserve.wire.messages import Reply, Serializer, open_reply, seal_reply
from qserve.wire.signing import Direction, KeyRing

logger = logging.getLogger("qserve.client")

SWEEP_S = 5.0
_SWEEP_MOST = 500
_CONSUME_AT = 64
_CONSUME_AFTER_S = 0.5
# An id may be read elsewhere before its call is stored: the two travel by different ways.
_ON_ITS_WAY_S = 5.0
_ON_ITS_WAY_RETRY_S = 0.05
Response = DeploymentResponse[Any]


def made_at_s(call_id: bytes) -> float:
    """When the call was made, by its caller's clock."""
    return int.from_bytes(call_id[:6]) / 1000  # an id opens with its milliseconds (wire.keys.CallIds)


def may_be_on_its_way(call_id: bytes) -> bool:
    """Whether a call that Redis does not know is so young that its put may still be travelling."""
    return abs(time.time() - made_at_s(call_id)) < _ON_ITS_WAY_S


class Inbox:
    """Open responses by call id.

    on_room  called when responses have been resolved, so that waiting calls may leave
    """

    def __init__(self, link: Link, ring: KeyRing, channel: str, on_room: Callable[[], None]) -> None:
        self.open: dict[bytes, Response] = {}
        self._link = link
        self._ring = ring
        self._channel = channel
        self._on_room = on_room
        self._loop = asyncio.get_running_loop()
        self._foreign: set[bytes] = set()
        self._roomless: set[bytes] = set()
        self._later: weakref.WeakValueDictionary[bytes, Response] = weakref.WeakValueDictionary()
        self._read: dict[DeploymentKeys, list[str]] = {}
        self._read_count = 0
        self._consume_timer: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def own(self) -> int:
        """How many open calls take room. Attached ones are somebody else's, and delayed ones wait for their time."""
        return len(self.open) - len(self._foreign) - len(self._roomless)

    def find(self, call_id: bytes) -> Response | None:
        """The response of a call that is open here; from now on it is kept until its reply has come."""
        response = self.open.get(call_id)
        if response is None and (response := self._later.pop(call_id, None)) is not None:
            self._roomless.add(call_id)
            self.expect(response)
        return response

    def expect(self, response: Response) -> None:
        """A reply to this response will come."""
        self.open[response.call_id] = response
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(SWEEP_S, self._sweep_soon)

    def shelve(self, response: Response) -> None:
        """Its call is delayed: it takes no room, and while nobody waits for it, only its user keeps it."""
        if response.done():
            return
        if response.is_awaited():
            self._roomless.add(response.call_id)
        else:
            self._forget(response)
            self._later[response.call_id] = response

    def attach(self, response: Response) -> None:
        """Fetch the reply of a call that somebody else made, now or when it comes."""
        self._foreign.add(response.call_id)
        self.expect(response)
        self._spawn(self._look_up([response]))

    def on_note(self, note: bytes) -> None:
        """A note has come: replies, or the ids of replies that are too large for a note."""
        large: list[Response] = []
        for call_id, envelope in store.split_note(note):
            response = self.open.get(call_id) or self.find(call_id)
            if response is None:
                continue  # told twice, or resolved by a look-up
            if envelope is None or not self._deliver(response, envelope):
                large.append(response)
        if large:
            self._spawn(self._look_up(large))
        self._on_room()

    def fail(self, response: Response, error: QserveError) -> None:
        """There will be no reply. Others who were given the call as an input are told why, in its record."""
        is_own = response.call_id not in self._foreign
        self._forget(response)
        response.fail(error)
        if is_own and response.kept:
            self.unread(response)

    def look_up_all(self) -> None:
        """Ask Redis for every open call; after a reconnect, when notes may have been missed."""
        for call_id in list(self._later.keys()):
            self.find(call_id)
        self._look_up_open()

    def close(self) -> None:
        """Stop timers and look-ups."""
        for timer in (self._consume_timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._consume()

    def _deliver(self, response: Response, envelope: bytes) -> bool:
        """Resolve the response. False when the envelope can't be trusted: nothing in it was opened."""
        try:
            reply = self._verified(response, envelope)
        except SignatureError as error:
            logger.warning("A note for call %s was ignored: %s", response.call_id.hex(), error)
            return False
        self._forget(response)
        if not response.kept:
            self._was_read(response)
        response.resolve(reply)
        return True

    def _verified(self, response: Response, envelope: bytes) -> Reply:
        reply = open_reply(envelope, self._ring.signer(Direction.REPLY, response.keys.scope))
        if reply.call_id != response.call_id:
            raise SignatureError(f"It answers call {reply.call_id.hex()}.")
        return reply

    def _forget(self, response: Response) -> None:
        self.open.pop(response.call_id, None)
        self._foreign.discard(response.call_id)
        self._roomless.discard(response.call_id)

    # Records that were read by their only reader

    def _was_read(self, response: Response) -> None:
        keys = response.keys
        self._read.setdefault(keys, []).append(keys.record(response.call_id))
        self._read_count += 1
        if self._read_count >= _CONSUME_AT:
            self._consume()
        elif self._consume_timer is None:
            self._consume_timer = self._loop.call_later(_CONSUME_AFTER_S, self._consume)

    def unread(self, response: Response) -> None:
        """Somebody else may read the record after all: leave it, or put it back.

        A call that failed here has none: its error takes the place, unless the call is stored after all.
        """
        name, pipe = response.keys.record(response.call_id), self._link.pipe
        waiting = self._read.get(response.keys, [])
        if name in waiting:
            waiting.remove(name)
        elif pipe is not None and (envelope := response.envelope() or self._sealed_error(response)) is not None:
            store.restore(pipe, name, envelope)

    def _sealed_error(self, response: Response) -> bytes | None:
        error = response.exception() if response.done() else None
        if error is None:
            return None
        reply = codec.encode_error(response.call_id, error, Serializer.PICKLE)
        return seal_reply(reply, self._ring.signer(Direction.REPLY, response.keys.scope))

    def _consume(self) -> None:
        if self._consume_timer is not None:
            self._consume_timer.cancel()
            self._consume_timer = None
        pipe = self._link.pipe
        if pipe is not None:
            for names in self._read.values():
                if names:
                    store.consume(pipe, names)
        self._read.clear()
        self._read_count = 0

    # Looking calls up

    def _sweep_soon(self) -> None:
        self._sweep_timer = None
        if self.open:
            self._sweep_timer = self._loop.call_later(SWEEP_S, self._sweep_soon)
            self._look_up_open()

    def _look_up_open(self) -> None:
        if self.open:
            self._spawn(self._look_up([r for r in self.open.values() if r.confirmed or r.call_id in self._foreign]))

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, responses: Iterable[Response]) -> None:
        by_keys: dict[DeploymentKeys, list[Response]] = {}
        for response in responses:
            by_keys.setdefault(response.keys, []).append(response)
        try:
            for keys, group in by_keys.items():
                await self._look_up_own(keys, [r for r in group if r.call_id not in self._foreign])
                for response in group:
                    if response.call_id in self._foreign:
                        self._judge(response, await store.watch(self._link, keys, response.call_id, self._channel))
        except TransportError as error:
            logger.info("Looking up open calls failed, the next sweep tries again: %s", error)

    def _look_again(self, response: Response) -> None:
        if response.call_id in self.open:
            self._spawn(self._look_up([response]))

    async def _look_up_own(self, keys: DeploymentKeys, group: list[Response]) -> None:
        for start in range(0, len(group), _SWEEP_MOST):
            chunk = group[start : start + _SWEEP_MOST]
            records = await store.fetch(self._link, [keys.record(r.call_id) for r in chunk])
            for response, record in zip(chunk, records, strict=True):
                self._judge(response, record)

    def _judge(self, response: Response, record: bytes | None) -> None:
        if self.open.get(response.call_id) is not response:
            return
        if record is None and response.call_id in self._foreign and may_be_on_its_way(response.call_id):
            self._loop.call_later(_ON_ITS_WAY_RETRY_S, self._look_again, response)
        elif record is None:
            self.fail(
                response,
                CallLost(
                    f"Redis does not know the call {response.call_id.hex()} to {response.keys.deployment!r} (any "
                    "more): it lost the call in a restart, or its result was fetched or is older than its time to "
                    "live. Submit it again if running it twice does no harm."
                ),
            )
        elif store.is_scheduled(record):
            if response.call_id in self._roomless:
                self.shelve(response)
        elif store.is_reply(record) and not self._deliver(response, record):
            self.fail(
                response,
                SignatureError(
                    f"The reply to call {response.call_id.hex()} does not carry a valid signature of this cluster; it "
                    "was not opened. Give all processes the same QSERVE_SECRET_KEY; if they have it, somebody else "
                    "writes here."
                ),
            )
