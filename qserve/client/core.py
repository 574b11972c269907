"""The core that carries calls: one per process and event loop. Two connections, whatever the number of calls."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from qserve.client.delayed import DelayedResponse
from qserve.client.inbox import Inbox, may_be_on_its_way
from qserve.client.outbox import ENQUEUE_TIMEOUT_S, Outbox, Outgoing
from qserve.client.response import DeploymentResponse, Following
from qserve.config import MAX_IN_FLIGHT, Settings
from qserve.errors import TransportError
from qserve.spec import CallState
from qserve.store import replies as store
from qserve.store.connection import endpoint_of
from qserve.store.delayed import Due
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.wire import codec
from qserve.wire.keys import CallIds, DeploymentKeys, deployment_keys, inbox
from qserve.wire.messages import Call, seal_call
from qserve.wire.signing import Direction, KeyRing

logger = logging.getLogger("qserve.client")

OnClose = Callable[["Core", list[DeploymentResponse[Any]]], None]


@dataclass(frozen=True, slots=True)
class Sending:
    """How a call leaves.

    limit  most calls that may wait for its deployment; -1: no limit
    due    when it is to run; None: at once
    """

    serializer: int
    limit: int = -1
    due: Due | None = None


class Core:
    """Sends calls and hears their replies, on the event loop that runs when it is made.

    on_close  gets the core as it closes, and the responses that are still open
    """

    def __init__(self, settings: Settings, on_close: OnClose) -> None:
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.ring = KeyRing(settings.secrets)
        self.channel = inbox(f"{os.getpid():x}-{secrets.token_hex(6)}")
        endpoint = endpoint_of(settings)
        name = f"qserve-client-{os.getpid()}"
        self.link = Link(endpoint, name, on_up=self._link_up, on_down=self._link_down)
        self._hears = Link(endpoint, f"{name}-inbox", on_up=self._hears_up, on_message=self._on_note)
        self._inbox = Inbox(self.link, self.ring, self.channel, self._on_room)
        self._outbox = Outbox(
            self.link, self._ready, self._room, self._inbox.expect, self._inbox.shelve, self._inbox.fail
        )
        self._ids = CallIds()
        self._mail: deque[Callable[[], None]] = deque()
        self._mail_noticed = False
        self._heard_before = False
        self._leaving = False
        self._on_close = on_close
        self.closed = False
        self._keeper = self._close_with_loop()
        self._hold_until_loop_ends()

    # Calling

    def call(
        self,
        keys: DeploymentKeys,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sending: Sending,
        *,
        parent_request: str | None,
    ) -> DeploymentResponse[Any]:
        """Encode a call and send it with this turn's others. Thread-safe; never blocks.

        Raises SerializationError that names the argument, PayloadTooLarge. All other errors are the response's.
        """
        encoded = codec.encode_arguments(args, kwargs, sending.serializer, f"The call '{keys.deployment}.{method}'")
        context: dict[str, Any] = {}
        if parent_request is not None:
            context["request"] = parent_request
        if encoded.references:
            context["inputs"] = encoded.references
        call_id = self._ids.next(time.time_ns() // 1_000_000)
        call = Call(call_id, method, self.channel, encoded.data, sending.serializer, encoded.flags, 0, context)
        envelope = seal_call(call, self.ring.signer(Direction.CALL, keys.scope))
        response: DeploymentResponse[Any]
        if sending.due is None:
            response = DeploymentResponse(self, keys, call_id, method)
        else:
            response = DelayedResponse(self, keys, call_id, method)
        outgoing = Outgoing(response, envelope, sending.limit, bool(encoded.references), sending.due)
        if asyncio._get_running_loop() is self.loop:  # noqa: SLF001 (its public form raises; this is per call)
            self._outbox.add(outgoing)
        else:
            self._post(lambda: self._outbox.add(outgoing))
        return response

    def attach(self, app: str, deployment: str, call_id: bytes) -> DeploymentResponse[Any]:
        """The response of a call that was made elsewhere. Thread-safe."""
        if asyncio._get_running_loop() is self.loop and (known := self._inbox.find(call_id)) is not None:  # noqa: SLF001 (as above)
            return known
        keys = deployment_keys(self.settings.namespace, app, deployment)
        response: DeploymentResponse[Any] = DeploymentResponse(self, keys, call_id, "?", kept=True)
        response.confirmed = True  # as far as we know: somebody had its id
        self._on_loop(lambda: self._attach(response))
        return response

    def keep(self, response: DeploymentResponse[Any]) -> None:
        """Somebody else may read this response's record: leave it to its time to live. Thread-safe."""
        if not response.kept:
            response.kept = True
            self._on_loop(lambda: self._inbox.unread(response) if response.done() else None)

    def adopt(self, response: DeploymentResponse[Any]) -> None:
        """Fetch the reply of a call whose own core has ended with its event loop. Thread-safe."""
        self._on_loop(lambda: self._attach(response))

    def hold(self, response: DeploymentResponse[Any]) -> None:
        """Somebody waits for this delayed call: keep its response until its reply has come. Thread-safe."""
        self._on_loop(lambda: self._inbox.find(response.call_id))

    async def state(self, response: DeploymentResponse[Any]) -> CallState:
        """Where an unresolved call stands, asked of Redis."""
        record = (await store.fetch(self.link, [response.keys.record(response.call_id)]))[0]
        if record is None:
            on_its_way = not response.confirmed or may_be_on_its_way(response.call_id)
            waits = CallState.SCHEDULED if isinstance(response, DelayedResponse) else CallState.QUEUED
            return waits if on_its_way else CallState.UNKNOWN
        if store.is_reply(record):
            await asyncio.gather(response, return_exceptions=True)
            return await response.status_async()
        if store.is_scheduled(record):
            return CallState.SCHEDULED
        at = store.place(response.keys, record)
        return CallState.RUNNING if await store.running_on(self.link, at) else CallState.QUEUED

    def _attach(self, response: DeploymentResponse[Any]) -> None:
        known = self._inbox.find(response.call_id) or self._outbox.find(response.call_id)
        if response.done() or known is response:  # its waiter and the end of its own core may both send it here
            return
        if known is not None:  # two responses of one call in one process: one answer serves both
            known.when_done(Following(response))
            return
        self._start()
        self._inbox.attach(response)

    # Threads

    def _on_loop(self, work: Callable[[], Any]) -> None:
        if asyncio._get_running_loop() is self.loop:  # noqa: SLF001 (as above)
            work()
        else:
            self._post(work)

    def _post(self, work: Callable[[], None]) -> None:
        """Have the loop do `work`. One wake-up serves all that has been posted until it runs."""
        self._mail.append(work)
        if not self._mail_noticed:
            self._mail_noticed = True
            self.loop.call_soon_threadsafe(self._open_mail)

    def _open_mail(self) -> None:
        self._mail_noticed = False
        while self._mail:
            self._mail.popleft()()

    # Connections

    def _start(self) -> None:
        self.link.start()
        self._hears.start()

    def _ready(self) -> Pipe | None:
        """The pipe to send on: only when the inbox is subscribed too, or a reply could be missed."""
        if self.link.pipe is None or self._hears.pipe is None:
            self._start()
            return None
        return self.link.pipe

    def _room(self) -> int:
        return sys.maxsize if self._leaving else MAX_IN_FLIGHT - self._inbox.own()

    def _on_note(self, note: bytes) -> None:
        self._inbox.on_note(note)

    def _on_room(self) -> None:
        self._outbox.flush_soon()

    def _link_up(self, _pipe: Pipe) -> None:
        self.loop.call_soon(self._resume)

    def _link_down(self, _error: TransportError) -> None:
        self._outbox.flush_soon()

    async def _hears_up(self, pipe: Pipe) -> None:
        await store.subscribe(pipe, self.channel)
        self.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self.link.pipe is None or self._hears.pipe is None:
            return
        self._outbox.flush_soon()
        if self._heard_before:
            self._inbox.look_up_all()
        self._heard_before = True

    # Ending

    async def leave(self) -> None:
        """Wait until the calls made so far are stored, for as long as a call waits for Redis; then `close()`."""
        self._leaving = True
        self._outbox.flush_soon()
        try:
            async with asyncio.timeout(ENQUEUE_TIMEOUT_S):
                await self._outbox.emptied()
        except TimeoutError:
            logger.warning("Calls were not stored before their process or event loop ended; they will not run.")
        self.close()

    def close(self) -> None:
        """Leave at once; `on_close` sees to what is still open. Safe to call twice; on the core's own loop."""
        if self.closed:
            return
        self.closed = True
        still_open = [*self._inbox.open.values(), *self._outbox.waiting()]
        self._inbox.close()
        self.link.close_now()
        self._hears.close_now()
        self._on_close(self, still_open)

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        """An event loop that ends finalizes its asynchronous generators: that is how the core hears of it."""
        try:
            yield
        finally:
            await self.leave()

    def _hold_until_loop_ends(self) -> None:
        try:
            self._keeper.__anext__().send(None)
        except StopIteration:
            return
