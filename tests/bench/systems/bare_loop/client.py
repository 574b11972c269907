"""The client of the bare loop, as a system of the bench."""

import asyncio
import itertools
import sys
from typing import Any

from tests.bench.systems.bare_loop.link import CALL_TIMEOUT_S, GROUP, INBOX, QUEUE, Link, seal, unseal
from tests.bench.systems.system import System, message


class BareLoop(System):
    """XADD out, PUBLISH back, a future and a timer for each call."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._ids = itertools.count()
        self._waiting: dict[bytes, tuple[asyncio.Future[object], asyncio.TimerHandle]] = {}
        self._calls: Link | None = None
        self._inbox: Link | None = None

    def commands(self) -> list[list[str]]:
        """One worker process."""
        return [[sys.executable, "-m", "tests.bench.systems.bare_loop.worker", self.url]]

    async def open(self) -> None:
        """Two connections: commands, and the inbox."""
        loop = asyncio.get_running_loop()
        subscribed: asyncio.Future[None] = loop.create_future()
        self._calls = await Link.connect(self.url, lambda _reply: None)
        self._inbox = await Link.connect(self.url, lambda reply: self._hear(reply, subscribed))
        self._calls.send(b"XGROUP", b"CREATE", QUEUE, GROUP, b"0", b"MKSTREAM")
        self._inbox.send(b"SUBSCRIBE", INBOX)
        await subscribed

    async def call(self, argument: object) -> object:
        """Put, and wait for the note that carries the reply."""
        return await self._put(argument)

    async def submit(self, count: int) -> None:
        """Put alone."""
        for number in range(count):
            self._put(message(number))
        await asyncio.sleep(0)

    async def close(self) -> None:
        """Drop the connections, and whatever still waits."""
        for link in (self._calls, self._inbox):
            if link is not None:
                link.close()
        for future, timer in self._waiting.values():
            timer.cancel()
            future.cancel()

    def _put(self, argument: object) -> asyncio.Future[object]:
        assert self._calls is not None
        loop = asyncio.get_running_loop()
        call_id = next(self._ids).to_bytes(16, "big")
        future = loop.create_future()
        self._waiting[call_id] = future, loop.call_later(CALL_TIMEOUT_S, self._expire, call_id)
        self._calls.send(b"XADD", QUEUE, b"*", b"call", seal(call_id, argument))
        return future

    def _hear(self, reply: Any, subscribed: asyncio.Future[None]) -> None:
        if reply[0] == b"subscribe":
            subscribed.set_result(None)
            return
        call_id, value = unseal(reply[2])
        future, timer = self._waiting.pop(call_id)
        timer.cancel()
        future.set_result(value)

    def _expire(self, call_id: bytes) -> None:
        future, _ = self._waiting.pop(call_id)
        future.set_exception(TimeoutError(f"No reply within {CALL_TIMEOUT_S} s."))
