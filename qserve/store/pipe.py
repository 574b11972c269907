"""One connection of the data path: asyncio.Protocol and hiredis, one write per turn of the event loop.

Callers never wait inside the connection: a reply goes to a callback, in the order of the commands, so a cancelled
caller can't leave the connection one reply off. A Pipe lives once; `link.py` opens the next one.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis

from qserve.errors import TransportError
from qserve.store.connection import Endpoint, open_transport, refused, says_go_away, unavailable
from qserve.store.resp import LARGE, Argument, Frames, pack
from qserve.store.scripts import Script

OnReply = Callable[[Any], None]
OnMessage = Callable[[bytes], None]

# A server that owes a reply and sends nothing for this long is gone (half-open connection).
SILENCE_S = 10.0


class Pipe(asyncio.Protocol):
    """A connection in use. `on_lost` is told once, when it ends for any reason.

    on_message  gets the payload of each message when the pipe is subscribed
    silence_s   how long the server may owe a reply before the connection is given up
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        on_lost: Callable[[TransportError], None],
        on_message: OnMessage | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._endpoint = endpoint
        self._on_lost = on_lost
        self._on_message = on_message
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=hiredis.ReplyError)
        self._waiting: deque[OnReply] = deque()
        self._out: list[bytes] = []
        self._heard_at = 0.0
        self._written = 0  # bytes, ever; and of these, at the last look:
        self._unsent = 0
        self._sent = 0
        self._watchdog: asyncio.TimerHandle | None = None
        self._cause: TransportError | None = None

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        *,
        name: str,
        on_lost: Callable[[TransportError], None],
        on_message: OnMessage | None = None,
        silence_s: float = SILENCE_S,
    ) -> Pipe:
        """Connect and introduce ourselves. Raises BrokerUnavailable, or BrokerRefused for wrong credentials."""
        _, pipe = await open_transport(
            endpoint, lambda: cls(endpoint, on_lost=on_lost, on_message=on_message, silence_s=silence_s)
        )
        try:
            await pipe._introduce(name)  # noqa: SLF001 (our own; the transport hands it over untyped)
        except BaseException:
            pipe.close()
            raise
        opened: Pipe = pipe
        return opened

    async def _introduce(self, name: str) -> None:
        endpoint = self._endpoint
        steps: list[asyncio.Future[Any]] = []
        if endpoint.password:
            user = (endpoint.username,) if endpoint.username else ()
            steps.append(self.call("AUTH", *user, endpoint.password))
        if endpoint.db:
            steps.append(self.call("SELECT", endpoint.db))
        steps.append(self.call("CLIENT", "SETNAME", name))
        for reply in await asyncio.gather(*steps, return_exceptions=True):
            if isinstance(reply, BaseException):
                raise reply

    # Sending

    def send(self, command: Frames, on_reply: OnReply) -> None:
        """Append a packed command; it leaves with all of this turn of the loop. On loss `on_reply` gets the error."""
        if self._transport is None:
            on_reply(self._cause or unavailable(self._endpoint, ConnectionError("the connection is closed")))
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += command
        if not self._waiting:
            self._heard_at = self._loop.time()
            if self._watchdog is None:
                self._unsent = 0
                self._watchdog = self._loop.call_later(self._silence_s / 2, self._check_silence)
        self._waiting.append(on_reply)

    def call(self, *parts: Argument) -> asyncio.Future[Any]:
        """Send one command. The future raises TransportError when the server refuses or is lost."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(pack(parts), self._resolver(future))
        return future

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], on_reply: OnReply) -> None:
        """Run a script; a server that does not know it is sent the source. Errors of the server go to `on_reply`."""
        rest = (len(keys), *keys, *arguments)

        def again(reply: Any) -> None:
            if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
                self.send(pack(("EVAL", script.source, *rest)), on_reply)
            else:
                on_reply(reply)

        self.send(pack(("EVALSHA", script.sha, *rest)), again)

    def script(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument] = ()) -> asyncio.Future[Any]:
        """Run a script. The future raises TransportError when the server refuses or is lost."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.run(script, keys, arguments, self._resolver(future))
        return future

    def _resolver(self, future: asyncio.Future[Any]) -> OnReply:
        def resolve(reply: Any) -> None:
            if future.done():  # the caller has gone; the reply was its own, nobody else gets it
                return
            if isinstance(reply, TransportError):
                future.set_exception(reply)
            elif isinstance(reply, Exception):
                future.set_exception(refused(self._endpoint, reply))
            else:
                future.set_result(reply)

        return resolve

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is None or not out:
            return
        size_bytes = sum(map(len, out))
        self._written += size_bytes
        if len(out) == 1:
            self._transport.write(out[0])
        elif size_bytes < LARGE:
            self._transport.write(b"".join(out))
        else:  # joining would copy it all once more
            for frame in out:
                self._transport.write(frame)

    # Receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have come."""
        reader = self._reader
        self._heard_at = self._loop.time()
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                self._dispatch(reply)
        except hiredis.ProtocolError as error:
            self._lose(unavailable(self._endpoint, error))

    def _dispatch(self, reply: Any) -> None:
        if self._on_message is not None and type(reply) is list and reply and reply[0] == b"message":
            self._on_message(reply[2])
            return
        if not self._waiting:
            return  # confirms an unsubscribe, or follows a connection that is being left
        self._waiting.popleft()(reply)
        if isinstance(reply, hiredis.ReplyError) and says_go_away(reply):
            self._lose(refused(self._endpoint, reply))

    def _check_silence(self) -> None:
        self._watchdog = None
        if self._transport is None:
            return
        if self._is_moving(self._transport):
            self._heard_at = self._loop.time()
        silent_s = self._loop.time() - self._heard_at
        if not self._waiting and self._on_message is None:
            return
        if silent_s < self._silence_s:
            soon_s = min(self._silence_s - silent_s, self._silence_s / 2)
            self._watchdog = self._loop.call_later(soon_s, self._check_silence)
        elif self._waiting:
            self._lose(unavailable(self._endpoint, TimeoutError(f"no answer for {silent_s:.0f} s")))
        else:  # a subscriber is owed nothing: half-open, it would just hear no more
            self.send(pack(("PING",)), _ignore)

    def _is_moving(self, transport: asyncio.Transport) -> bool:
        """Whether the server took bytes that waited here at the last look: a long upload is no silence.

        Bytes that the kernel took at once prove nothing: it takes them for a server that is gone as well.
        """
        waited, sent = self._unsent > 0, self._sent
        self._unsent = transport.get_write_buffer_size()
        self._sent = self._written - self._unsent
        return waited and self._sent > sent

    # Ending

    def _lose(self, error: TransportError) -> None:
        self._cause = error
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Leave at once. Replies still owed are given up. Safe to call twice."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection has ended."""
        self._transport = None
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        error = self._cause or unavailable(self._endpoint, exc or ConnectionError("the server closed the connection"))
        self._cause = error
        owed, self._waiting = self._waiting, deque()
        for on_reply in owed:
            on_reply(error)
        self._on_lost(error)


def _ignore(_reply: Any) -> None:
    return
