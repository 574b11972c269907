"""A deployment's queue as tests drive it: sealed calls, known by small numbers, go in; signed replies come out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from qserve.errors import TransportError
from qserve.store import calls, replies
from qserve.store.calls import Entry, Finished
from qserve.store.connection import Endpoint
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.store.reclaim import Reclaimer
from qserve.wire import codec
from qserve.wire.keys import GROUP, DeploymentKeys, inbox
from qserve.wire.messages import Call, Serializer, open_reply, peek_call, seal_call, seal_reply
from qserve.wire.signing import Direction, KeyRing


class Queue:
    """Real operations on a real server. Call number 7 has the call id 7 and the argument 7."""

    def __init__(self, link: Link, ring: KeyRing, keys: DeploymentKeys) -> None:
        self.link = link
        self.ring = ring
        self.keys = keys
        self.inbox = inbox(f"client-of-{keys.scope}")
        self._calls = ring.signer(Direction.CALL, keys.scope)
        self._replies = ring.signer(Direction.REPLY, keys.scope)

    async def open(self) -> None:
        """Make the streams and their group."""
        await calls.open_queue(await self.link.ready(), self.keys)

    async def pipe(self) -> Pipe:
        """The connection that all goes over."""
        return await self.link.ready()

    # In

    def sealed(self, number: int) -> tuple[bytes, bytes]:
        """Call id and envelope of a call."""
        encoded = codec.encode_arguments((number,), {}, Serializer.PICKLE)
        call = Call(id_of(number), "say", self.inbox, encoded.data)
        return call.call_id, seal_call(call, self._calls)

    async def put(self, *numbers: int, limit: int = -1) -> list[int]:
        """Put calls in one batch. Returns [taken, waiting]."""
        answer = asyncio.get_running_loop().create_future()
        calls.put(await self.pipe(), self.keys, [self.sealed(n) for n in numbers], limit, answer.set_result)
        taken: list[int] = await _reply(answer)
        return taken

    async def claim(self, replica: str = "r1", count: int = 10) -> list[Entry]:
        """What a replica with free slots is given, without waiting for more."""
        return await calls.claim(await self.pipe(), self.keys, replica, count, 0)

    # Out

    def finished(self, entry: Entry, value: Any = "done") -> Finished:
        """The reply to the call of an entry."""
        call_id = id_of(number_of(entry))
        return Finished(entry, call_id, self.inbox, self.reply(call_id, value))

    def reply(self, call_id: bytes, value: Any) -> bytes:
        """A signed reply."""
        return seal_reply(codec.encode_result(call_id, value, Serializer.PICKLE), self._replies)

    async def finish(self, *entries: Entry, value: Any = "done") -> int:
        """Finish entries of one stream in one batch. Returns how many were fenced."""
        return await self.store([self.finished(entry, value) for entry in entries])

    async def store(self, batch: Sequence[Finished]) -> int:
        """Store replies in one batch. Returns how many were fenced."""
        answer = asyncio.get_running_loop().create_future()
        calls.finish(await self.pipe(), self.keys, batch[0].entry.stream, batch, answer.set_result)
        fenced: int = await _reply(answer)
        return fenced

    async def hand_back(self, replica: str, *entries: Entry, charge: bool = True) -> int:
        """Hand entries of one stream back. Returns how many were moved."""
        pairs = [(entry, id_of(number_of(entry))) for entry in entries]
        return await calls.hand_back(self.link, self.keys, entries[0].stream, replica, pairs, charge=charge)

    def reclaimer(self, max_retries: int = 2) -> Reclaimer:
        """What takes calls from replicas that died."""
        return Reclaimer(self.link, self.ring, self.keys, max_retries)

    async def leave(self, *names: str) -> None:
        """Forget replicas that hold nothing, as their worker does at their end."""
        for name in names:
            assert await calls.reap(self.link, self.keys, name), f"{name} still holds calls, or its lease"

    # Looking

    async def record(self, number: int) -> bytes | None:
        """The call's record."""
        return (await replies.fetch(self.link, [self.keys.record(id_of(number))]))[0]

    async def answer(self, number: int) -> Any:
        """The call's result, from its record. Raises what it raised, AssertionError when there is none."""
        record = await self.record(number)
        assert record is not None, f"call {number} is not known"
        assert replies.is_reply(record), f"call {number} has no reply: {record!r}"
        return codec.decode_reply(open_reply(record, self._replies))

    async def forget(self, *numbers: int) -> None:
        """Remove records, as callers do that have read them."""
        names = [self.keys.record(id_of(n)) for n in numbers]
        assert await self.link.call("UNLINK", *names) == len(names)

    async def lengths(self) -> tuple[int, int]:
        """Entries in both streams, and how many of them are pending."""
        total = pending = 0
        for stream in (self.keys.front, self.keys.calls):
            total += await self.link.call("XLEN", stream)
            pending += (await self.link.call("XPENDING", stream, GROUP))[0]
        return total, pending


class Ear:
    """What an inbox hears, in order: (call id, reply) pairs, or whatever `on_note` makes of it."""

    def __init__(self, endpoint: Endpoint, channel: str, on_note: Callable[[bytes], None] | None = None) -> None:
        self._channel = channel
        self._notes: list[tuple[bytes, bytes | None]] = []
        self._on_note = on_note or self._split
        self._marked = asyncio.Event()
        self._speaks = Link(endpoint, "test-ear-mark")
        self._link = Link(endpoint, "test-ear", on_up=self._subscribe, on_message=self._on_message)

    async def open(self) -> None:
        """Subscribe."""
        await self._link.ready()

    async def heard(self) -> list[tuple[bytes, bytes | None]]:
        """All (call id, reply) pairs since the last time; what was published before this is asked is in it."""
        self._marked.clear()
        await self._speaks.call("PUBLISH", self._channel, b"")
        await self._marked.wait()
        notes, self._notes = self._notes, []
        return notes

    async def close(self) -> None:
        """Leave."""
        await self._link.close()
        await self._speaks.close()

    async def _subscribe(self, pipe: Pipe) -> None:
        await replies.subscribe(pipe, self._channel)

    def _on_message(self, note: bytes) -> None:
        if note:
            self._on_note(note)
        else:
            self._marked.set()

    def _split(self, note: bytes) -> None:
        self._notes += replies.split_note(note)


def id_of(number: int) -> bytes:
    """The call id of a call that a test knows by a number."""
    return number.to_bytes(16)


def number_of(entry: Entry) -> int:
    """The number of the call that an entry holds."""
    peeked = peek_call(entry.envelope)
    assert peeked is not None
    return int.from_bytes(peeked[0])


def numbers_of(entries: Sequence[Entry]) -> list[int]:
    """The numbers of several entries' calls, in their order."""
    return [number_of(entry) for entry in entries]


async def _reply(answer: asyncio.Future[Any]) -> Any:
    reply = await answer
    if isinstance(reply, TransportError):
        raise reply
    assert not isinstance(reply, Exception), reply
    return reply
