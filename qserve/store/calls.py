"""A deployment's queue: put, take, finish, hand back. One typed function per operation; docs/design/protocol.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis

from qserve.config import RESULT_TTL_S
from qserve.errors import BrokerRefused
from qserve.store import scripts
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.wire.keys import GROUP, DeploymentKeys

# A reply up to this size rides in the note to its caller; larger ones are fetched, because the server closes
# subscribers that fall more than 32 MiB behind.
INLINE_REPLY_BYTES = 16 * 1024
# How many calls one script may handle: it blocks the server while it runs.
MOST_PER_SCRIPT = 250
MOST_PER_SWEEP = 100
# A sweep reads envelopes, and they may be large: so many bytes fill a page of it.
_SWEEP_BYTES = 8 * 1024 * 1024
# The consumer that takes what waits in a deleted deployment's queue, to answer it. It has no lease.
CLOSER = "closer"
_QUARANTINE_KEEPS = 1000
_QUARANTINE_BYTES = 4096
_DEAD_KEEPS = 10_000
_TTL_MS = int(RESULT_TTL_S * 1000)


@dataclass(frozen=True, slots=True)
class Entry:
    """One call as it stands in a queue."""

    stream: str
    entry_id: bytes
    envelope: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Finished:
    """One reply on its way into the store."""

    entry: Entry
    call_id: bytes
    inbox: str
    reply: bytes


@dataclass(frozen=True, slots=True)
class Depth:
    """How many calls a deployment has waiting and running."""

    waiting: int
    running: int


@dataclass(frozen=True, slots=True)
class Load:
    """What a deployment has to do.

    oldest_wait_s  how long the oldest of the waiting calls has waited; 0 when none waits
    arrived        how many calls were ever added to its queue, which begins anew when it slept; None: it has no queue
    """

    waiting: int
    running: int
    oldest_wait_s: float
    arrived: int | None


def put(
    pipe: Pipe,
    keys: DeploymentKeys,
    calls: Sequence[tuple[bytes, bytes]],
    limit: int,
    on_reply: Callable[[Any], None],
) -> None:
    """Add (call id, envelope) pairs to the queue, in order; at most MOST_PER_SCRIPT, no id twice.

    `on_reply` gets [taken, waiting], or the exception. The first `taken` calls are in the queue now or were before; the
    others were refused: `waiting` is -1 when the deployment is gone, else the queue is full.
    """
    names = [keys.calls, keys.front, keys.asleep]
    names += [keys.record(call_id) for call_id, _ in calls]
    pipe.run(scripts.PUT, names, [GROUP, limit, *(envelope for _, envelope in calls)], on_reply)


def finish(
    pipe: Pipe, keys: DeploymentKeys, stream: str, batch: Sequence[Finished], on_reply: Callable[[Any], None]
) -> None:
    """Store the replies of calls taken from `stream`; at most MOST_PER_SCRIPT. `on_reply` gets how many were fenced."""
    pipe.run(scripts.FINISH, *_finish_arguments(keys, stream, batch), on_reply)


async def finish_one(link: Link, keys: DeploymentKeys, done: Finished) -> bool:
    """Store one reply. False when it was fenced. Raises TransportError."""
    fenced = await link.script(scripts.FINISH, *_finish_arguments(keys, done.entry.stream, [done]))
    return not fenced


def _finish_arguments(keys: DeploymentKeys, stream: str, batch: Sequence[Finished]) -> tuple[list[str], list[Any]]:
    names = [stream]
    arguments: list[Any] = [GROUP, _TTL_MS, INLINE_REPLY_BYTES]
    for done in batch:
        names.append(keys.record(done.call_id))
        arguments += (done.entry.entry_id, done.inbox, done.reply)
    return names, arguments


def read_entries(reply: Any) -> list[Entry]:
    """The entries of an XREADGROUP's reply, in order of the streams. Deleted ones are left out."""
    return [
        _entry(stream.decode(), entry_id, fields)
        for stream, rows in reply or ()
        for entry_id, fields in rows
        if fields is not None
    ]


def _entry(stream: str, entry_id: bytes, fields: Sequence[bytes]) -> Entry:
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    return Entry(stream, entry_id, named.get(b"c", b""), _attempt(named.get(b"a", b"1")))


def _attempt(text: bytes) -> int:
    """An attempt's number. Anybody who reaches Redis may have written it: what is no small number counts as 1."""
    return int(text) if text.isdigit() and len(text) < 10 else 1


async def claim(pipe: Pipe, keys: DeploymentKeys, replica: str, count: int, block_ms: int) -> list[Entry]:
    """Up to `count` entries of each stream, handed-back ones first; waits up to `block_ms` for the first.

    block_ms  0 does not wait
    Raises TransportError; a group that is missing is made again and nothing is returned.
    """
    waiting = ("BLOCK", block_ms) if block_ms else ()
    try:
        reply = await pipe.call(
            "XREADGROUP", "GROUP", GROUP, replica, "COUNT", count, *waiting, "STREAMS", keys.front, keys.calls, ">", ">"
        )
    except BrokerRefused as error:
        if "NOGROUP" not in str(error):
            raise
        await open_queue(pipe, keys)
        return []
    return read_entries(reply)


async def open_queue(pipe: Pipe, keys: DeploymentKeys) -> None:
    """Make the deployment's streams and their group, from the first entry on, if they are missing: it is awake."""
    await pipe.script(scripts.OPEN, [keys.calls, keys.front, keys.asleep], [GROUP])


async def fall_asleep(link: Link, keys: DeploymentKeys, channel: str, event: str) -> bool:
    """Remove the queue of a deployment without replicas, if it is empty; the next call makes it again.

    channel, event  what that call publishes, and where
    False when a call is in the queue, or the deployment is gone.
    """
    return bool(await link.script(scripts.SLEEP, [keys.calls, keys.front, keys.asleep], [f"{channel} {event}"]))


async def pending(pipe: Pipe, stream: str, replica: str, *, after: bytes = b"") -> list[Entry]:
    """A page of what `replica` holds of `stream`, oldest first; empty when there is nothing (more).

    after  the last entry id of the page before; empty for the first page
    """
    start = b"(" + after if after else b"-"
    rows = await pipe.script(scripts.PENDING, [stream], [GROUP, replica, MOST_PER_SWEEP, start, _SWEEP_BYTES])
    return [Entry(stream, entry_id, envelope, _attempt(attempt)) for entry_id, attempt, envelope in rows]


async def all_pending(pipe: Pipe, stream: str, replica: str) -> list[Entry]:
    """All that `replica` holds of `stream`, oldest first."""
    held: list[Entry] = []
    while page := await pending(pipe, stream, replica, after=held[-1].entry_id if held else b""):
        held += page
    return held


async def hand_back(
    link: Link, keys: DeploymentKeys, stream: str, replica: str, entries: Sequence[tuple[Entry, bytes]], *, charge: bool
) -> int:
    """Put calls that `replica` holds to the front of the queue, as (entry, call id). Returns how many were moved.

    charge  whether the attempt counts: no for a drain, yes for a replica that died
    """
    names = [stream, keys.front, *(keys.record(call_id) for _, call_id in entries)]
    arguments: list[Any] = [GROUP, replica]
    for entry, _ in entries:
        arguments += (entry.entry_id, entry.attempt + int(charge))
    moved: int = await link.script(scripts.HAND_BACK, names, arguments)
    return moved


async def quarantine(
    link: Link, keys: DeploymentKeys, entry: Entry, reason: str, answer: tuple[bytes, str, bytes] | None
) -> bool:
    """Take an entry that cannot be trusted off the queue and keep its first bytes.

    answer  (call id, inbox, reply) for the caller, sent only when the entry is the one made for that call
    """
    call_id, inbox, reply = answer or (b"", "", b"")
    record = keys.record(call_id) if answer else entry.stream
    state = f"Q{'f' if entry.stream == keys.front else 'c'}{entry.entry_id.decode()}"
    raw = entry.envelope[:_QUARANTINE_BYTES]
    arguments: list[Any] = [GROUP, entry.entry_id, state, reason, raw, _QUARANTINE_KEEPS, inbox, reply, _TTL_MS]
    gone = await link.script(scripts.QUARANTINE, [entry.stream, keys.quarantine, record], arguments)
    return bool(gone)


async def bury(link: Link, keys: DeploymentKeys, entry: Entry, call_id: bytes, reason: str) -> None:
    """Keep a call that used up its attempts as a dead letter. Its caller is answered by `finish`."""
    fields = ("call", call_id.hex(), "attempts", entry.attempt, "reason", reason, "envelope", entry.envelope)
    await link.call("XADD", keys.dead, "MAXLEN", "~", _DEAD_KEEPS, "*", *fields)


async def reap(link: Link, keys: DeploymentKeys, replica: str) -> bool:
    """Forget a replica that holds nothing and has no lease; its consumer would stay in the group for ever."""
    names = [keys.calls, keys.front, keys.lease(replica)]
    return bool(await link.script(scripts.REAP, names, [GROUP, replica]))


async def retire(link: Link, keys: DeploymentKeys) -> bool:
    """Remove a deleted deployment's queue if it is empty. From then on calls to it are refused."""
    return bool(await link.script(scripts.RETIRE, [keys.calls, keys.front, keys.delayed, keys.asleep]))


async def holders(link: Link, keys: DeploymentKeys, *, quiet_s: float = 0.0) -> dict[str, int]:
    """The replicas known to the queue's group, and how many calls each holds.

    quiet_s  without those that have asked for calls in the last so many seconds
    """
    held: dict[str, int] = {}
    lively: set[str] = set()
    for stream in (keys.front, keys.calls):
        try:
            rows = await link.call("XINFO", "CONSUMERS", stream, GROUP)
        except BrokerRefused:  # no stream or no group: nobody holds anything
            continue
        for row in rows:
            named = dict(zip(row[::2], row[1::2], strict=True))
            name = named[b"name"].decode()
            held[name] = held.get(name, 0) + int(named[b"pending"])
            if int(named[b"idle"]) < quiet_s * 1000:
                lively.add(name)
    return {name: number for name, number in held.items() if name not in lively}


async def depth(link: Link, keys: DeploymentKeys) -> Depth:
    """How many calls wait and run now; exact. A missing stream is empty."""
    load = await load_of(await link.ready(), keys)
    return Depth(waiting=load.waiting, running=load.running)


async def load_of(pipe: Pipe, keys: DeploymentKeys) -> Load:
    """What a deployment has to do now, in one step. A missing stream is empty."""
    waiting, running, age_ms, added = await pipe.script(scripts.DEPTH, [keys.calls, keys.front], [GROUP])
    return Load(waiting, running, age_ms / 1000, None if added < 0 else added)


async def is_empty(pipe: Pipe, keys: DeploymentKeys) -> bool:
    """Whether nothing waits or runs, but for what was handed back; one plain command."""
    return not await pipe.call("XLEN", keys.calls)


async def is_asleep(pipe: Pipe, keys: DeploymentKeys) -> bool:
    """Whether the deployment sleeps: it has no queue until the next call comes."""
    return bool(await pipe.call("EXISTS", keys.asleep))


def is_error(reply: Any) -> bool:
    """Whether what a callback got is an error, of the server or of the connection."""
    return isinstance(reply, (hiredis.ReplyError, Exception))
