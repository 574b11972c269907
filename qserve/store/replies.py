"""Replies: the note that a caller's inbox gets, and the call's record that any process can read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

from qserve.config import RESULT_TTL_S
from qserve.errors import BrokerRefused
from qserve.store import scripts
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.store.resp import pack
from qserve.wire.keys import CALL_ID_BYTES, GROUP, DeploymentKeys
from qserve.wire.messages import REPLY_ID_AT

_LENGTH = Struct(">I")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call without a reply stands."""

    stream: str
    entry_id: str


def split_note(note: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """The (call id, reply) pairs of a note; None for a reply that is too large to ride in it. Stops at what is cut."""
    at, end = 0, len(note)
    while at + 4 <= end:
        size = _LENGTH.unpack_from(note, at)[0]
        part = note[at + 4 : at + 4 + (size or CALL_ID_BYTES)]
        at += 4 + (size or CALL_ID_BYTES)
        if at > end:
            return
        yield (part[REPLY_ID_AT : REPLY_ID_AT + CALL_ID_BYTES], part) if size else (part, None)


def is_reply(record: bytes) -> bool:
    """Whether a record holds a reply, and not the call's place in the queue."""
    return record[:1] != b"Q"


def is_scheduled(record: bytes) -> bool:
    """Whether the record is that of a call that is not due yet."""
    return record[:2] == b"Qd"


def place(keys: DeploymentKeys, record: bytes) -> Place:
    """Where the call stands, from a record without a reply."""
    state = record.partition(b"|")[0].decode()
    return Place(keys.front if state[1:2] == "f" else keys.calls, state[2:])


async def subscribe(pipe: Pipe, channel: str) -> None:
    """Listen on an inbox. From its return on no note is missed while the pipe lives."""
    await pipe.call("SUBSCRIBE", channel)


async def fetch(link: Link, names: Sequence[str]) -> list[bytes | None]:
    """Records by their keys, all of one deployment; None where there is none."""
    records: list[bytes | None] = await link.call("MGET", *names)
    return records


async def watch(link: Link, keys: DeploymentKeys, call_id: bytes, inbox: str) -> bytes | None:
    """Read a call's record and, while it holds no reply, have `inbox` told of it. None when the call is unknown."""
    record: bytes | None = await link.script(scripts.WATCH, [keys.record(call_id)], [inbox])
    return record


def consume(pipe: Pipe, names: Sequence[str]) -> None:
    """Remove records whose replies have been delivered to their only reader. Nobody waits for the answer."""
    pipe.send(pack(("UNLINK", *names)), _ignore)


def restore(pipe: Pipe, name: str, envelope: bytes) -> None:
    """Put a reply back under its key, for readers that were named after it was consumed."""
    pipe.send(pack(("SET", name, envelope, "PX", int(RESULT_TTL_S * 1000), "NX")), _ignore)


async def running_on(link: Link, at: Place) -> tuple[str, int] | None:
    """The replica that runs the call at this place, and how often the queue gave it out; None while it waits."""
    try:
        rows = await link.call("XPENDING", at.stream, GROUP, at.entry_id, at.entry_id, 1)
    except BrokerRefused as error:
        if "NOGROUP" not in str(error):
            raise
        return None  # the queue is gone, and nobody runs anything of it
    return (rows[0][1].decode(), int(rows[0][3])) if rows else None


def _ignore(_reply: Any) -> None:
    return
