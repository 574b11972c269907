"""One connection in the bare loop: hiredis packs and reads, one write per turn of the event loop."""

import asyncio
import hashlib
import os
import pickle
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import hiredis

QUEUE = b"bare:calls"
GROUP = b"replicas"
INBOX = b"bare:inbox"
CALL_TIMEOUT_S = 60.0
_KEY = os.environ.get("BENCH_SECRET", "not a secret").encode()[:64]
_MAC_BYTES = 16


class Link(asyncio.Protocol):
    """Commands out, replies in; whatever was sent in one turn leaves in one write."""

    def __init__(self, on_reply: Callable[[object], None]) -> None:
        self._on_reply = on_reply
        self._reader = hiredis.Reader()
        self._outgoing: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def connect(cls, url: str, on_reply: Callable[[object], None]) -> "Link":
        """A connected link to the server of this URL (redis:// or unix://)."""
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        if parts.scheme == "unix":
            _, link = await loop.create_unix_connection(lambda: cls(on_reply), parts.path)
        else:
            _, link = await loop.create_connection(lambda: cls(on_reply), parts.hostname or "", parts.port or 6379)
        return link

    def send(self, *command: str | int | float | bytes | memoryview) -> None:
        """Add a command to this turn's write."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows only commands of one word
        self._outgoing.append(packed)

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio hands over the transport."""
        # uvloop's transports are no subclass.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and pass on every whole reply."""
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, Exception):
                raise reply
            self._on_reply(reply)

    def _flush(self) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()


def seal(call_id: bytes, value: object) -> bytes:
    """MAC, id and pickle in one envelope."""
    body = call_id + pickle.dumps(value, 5)
    return hashlib.blake2b(body, key=_KEY, digest_size=_MAC_BYTES).digest() + body


def unseal(envelope: bytes) -> tuple[bytes, object]:
    """Id and value of an envelope, once its MAC is verified."""
    body = envelope[_MAC_BYTES:]
    if hashlib.blake2b(body, key=_KEY, digest_size=_MAC_BYTES).digest() != envelope[:_MAC_BYTES]:
        raise ValueError("An envelope of the bare loop fails its MAC: two runs share one server.")
    return body[:16], pickle.loads(body[16:])
