"""A connection that comes back: opens a Pipe, and the next one when it is lost, until it is closed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from qserve.errors import BrokerDenied, BrokerUnavailable, TransportError
from qserve.store.connection import Endpoint, unavailable
from qserve.store.pipe import SILENCE_S, OnMessage, Pipe
from qserve.store.resp import Argument
from qserve.store.scripts import Script

logger = logging.getLogger("qserve.store")

_FIRST_WAIT_S = 0.01
_LONGEST_WAIT_S = 1.0
# A server that accepts connections and then refuses to serve must not be knocked at without a pause.
_PROVEN_AFTER_S = 1.0
_WARN_AFTER_S = 2.0
OnUp = Callable[[Pipe], Awaitable[None] | None]


class Link:
    """Keeps one Pipe open. `on_up` runs on each new pipe before anyone else may use it; `on_down` when it is lost.

    name       what CLIENT LIST shows
    silence_s  how long the server may owe a reply
    """

    def __init__(
        self,
        endpoint: Endpoint,
        name: str,
        *,
        on_up: OnUp | None = None,
        on_down: Callable[[TransportError], None] | None = None,
        on_message: OnMessage | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.endpoint = endpoint
        self.pipe: Pipe | None = None
        self.error: TransportError | None = None
        self._name = name
        self._on_up = on_up
        self._on_down = on_down
        self._on_message = on_message
        self._silence_s = silence_s
        self._task: asyncio.Task[None] | None = None
        self._changed: asyncio.Event = asyncio.Event()
        self._closed = False
        self._wait_s = 0.0
        self._up_at = 0.0

    def start(self) -> None:
        """Begin to connect, in the background. Safe to call twice."""
        # An event loop that ends cancels all tasks first, and may still have calls to send.
        trying = self._task is not None and not self._task.done()
        if not trying and self.pipe is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._connect(), name=f"{self._name}-connect")

    async def ready(self, timeout_s: float = 5.0) -> Pipe:
        """The open pipe.

        Raises BrokerUnavailable with the last reason when there is none within `timeout_s`, and BrokerDenied at once:
        waiting does not mend a wrong password.
        """
        self.start()
        try:
            async with asyncio.timeout(timeout_s):
                while self.pipe is None and not self._closed:
                    if isinstance(self.error, BrokerDenied):
                        raise self.error
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise self.error or unavailable(self.endpoint, TimeoutError(f"no answer in {timeout_s:g} s")) from None
        if self.pipe is None:
            raise BrokerUnavailable(f"The connection {self._name!r} was closed.")
        return self.pipe

    async def call(self, *parts: Argument) -> Any:
        """Send one command on the open pipe and wait for its reply. Raises TransportError."""
        return await (await self.ready()).call(*parts)

    async def script(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Any:
        """Run a script on the open pipe and wait for its reply. Raises TransportError."""
        return await (await self.ready()).script(script, keys, arguments)

    async def close(self) -> None:
        """Leave. Safe to call twice, or before start."""
        task = self._task
        self.close_now()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def close_now(self) -> None:
        """Leave without waiting; for the end of an event loop."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._changed.set()
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            pipe.close()

    async def _connect(self) -> None:
        warn_after_s = _WARN_AFTER_S
        began_at = asyncio.get_running_loop().time()
        while not self._closed:
            if self._wait_s:
                # Full jitter: many clients that lost one server do not come back all at once.
                await asyncio.sleep(self._wait_s * (0.5 + random.random() / 2))  # noqa: S311 (spreads load, no secret)
            try:
                await self._open()
            except TransportError as error:
                self.error = error
                self._changed.set()
                tried_s = asyncio.get_running_loop().time() - began_at
                if tried_s >= warn_after_s:
                    logger.warning("%s Trying again for %.0f s now.", error, tried_s)
                    warn_after_s = 2 * tried_s
                self._wait_longer()
            else:
                break
        self._task = None

    def _wait_longer(self) -> None:
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S) or _FIRST_WAIT_S

    async def _open(self) -> None:
        lost: list[TransportError] = []

        def on_lost(error: TransportError) -> None:
            lost.append(error)
            if pipe is not None and self.pipe is pipe:
                self._down(error)

        pipe: Pipe | None = None
        pipe = await Pipe.open(
            self.endpoint, name=self._name, on_lost=on_lost, on_message=self._on_message, silence_s=self._silence_s
        )
        try:
            if self._on_up is not None and (waiting := self._on_up(pipe)) is not None:
                await waiting
        except BaseException:
            pipe.close()
            raise
        if lost:
            raise lost[0]
        if self._closed:
            pipe.close()
            return
        self.pipe, self.error = pipe, None
        self._up_at = asyncio.get_running_loop().time()
        self._changed.set()

    def _down(self, error: TransportError) -> None:
        self.pipe, self.error = None, error
        if self._closed:
            return
        logger.warning("Lost the connection %r: %s", self._name, error)
        if asyncio.get_running_loop().time() - self._up_at >= _PROVEN_AFTER_S:
            self._wait_s = 0.0
        else:
            self._wait_longer()
        if self._on_down is not None:
            self._on_down(error)
        self.start()
