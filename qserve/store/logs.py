"""What replicas wrote: one capped stream of lines for each deployment. Workers write it, `qserve logs` reads it.

The lines are shown to people and decide nothing: they are not signed.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qserve.errors import UsageError
from qserve.store.link import Link
from qserve.store.state import ClusterState
from qserve.wire.keys import ClusterKeys

LONGEST_LINE_BYTES = 8 * 1024
# The end of the year 9999, the last that a datetime knows.
_LAST_MS = 253_402_300_799_999
_EXPIRY_S = 24 * 3600
_PAGE = 250
# Well below the silence after which a connection counts as lost.
_BLOCK_MS = 5000
_NOTHING_YET = "0-0"


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a replica wrote, or that its worker says of it.

    pid        0 when there was no process
    of_worker  the worker's own words
    at_ms      when it was stored, by the server's clock; 0 before
    """

    app: str
    deployment: str
    replica_id: str
    pid: int
    host: str
    text: str
    of_worker: bool = False
    at_ms: int = 0

    @property
    def label(self) -> str:
        """The replica as people name it: Model#a1b2c3d4."""
        return f"{self.deployment}#{self.replica_id.rpartition('-')[2]}"


def cut(text: str) -> str:
    """The text, or its beginning when it is longer than a line may be."""
    if len(text) <= LONGEST_LINE_BYTES // 4:
        return text
    raw = text.encode(errors="replace")
    if len(raw) <= LONGEST_LINE_BYTES:
        return text
    return f"{raw[:LONGEST_LINE_BYTES].decode(errors='ignore')}... (cut, it has {len(raw)} bytes)"


async def append(link: Link, keys: ClusterKeys, lines: Sequence[LogLine], keep: int) -> list[int]:
    """Store lines in their order, all in one write. Returns the indexes of those that did not arrive.

    keep  about how many lines of a deployment stay
    Raises BrokerUnavailable when there is no connection.
    """
    pipe = await link.ready()
    names = [keys.logs(line.app, line.deployment) for line in lines]
    sent = [
        pipe.call("XADD", name, "MAXLEN", "~", keep, "*", *_fields(line))
        for name, line in zip(names, lines, strict=True)
    ]
    expiries = [pipe.call("EXPIRE", name, _EXPIRY_S) for name in dict.fromkeys(names)]
    replies = await asyncio.gather(*sent, *expiries, return_exceptions=True)
    return [index for index, reply in enumerate(replies[: len(lines)]) if isinstance(reply, BaseException)]


def _fields(line: LogLine) -> list[str | bytes | int]:
    text = line.text.encode(errors="replace")  # a surrogate that somebody printed has no bytes
    fields: list[str | bytes | int] = ["r", line.replica_id, "p", line.pid, "h", line.host, "l", text]
    return [*fields, "w", 1] if line.of_worker else fields


# Reading


@dataclass(frozen=True, slots=True)
class Choice:
    """Whose lines are wanted.

    deployments  (application, deployment) pairs
    replica      what the replicas' ids begin with; empty: all of them
    """

    deployments: frozenset[tuple[str, str]]
    replica: str = ""

    def has(self, line: LogLine) -> bool:
        """Whether the line is wanted."""
        return line.replica_id.startswith(self.replica)


def choose(target: str, known: Mapping[str, Collection[str]]) -> Choice | None:
    """What a target names among the applications and their deployments; None when there is nothing of that name.

    target  empty (everything), APP, APP.DEPLOYMENT, DEPLOYMENT, or a replica as DEPLOYMENT#a1b2 or by its id; the first
            that fits, in this order
    Raises UsageError when several applications have a deployment of that name.
    """
    pairs = {(app, name) for app, names in known.items() for name in names}
    if not target:
        return Choice(frozenset(pairs))
    if target in known:
        return Choice(frozenset((app, name) for app, name in pairs if app == target))
    if found := {(app, name) for app, name in pairs if target in (name, f"{app}.{name}")}:
        if len(found) > 1:
            several = " or ".join(sorted(f"{app}.{name}" for app, name in found))
            raise UsageError(f"Several applications have a deployment {target!r}: say {several}.")
        return Choice(frozenset(found))
    for mark in "#-":
        deployment, _, tail = target.rpartition(mark)
        if found := {(app, name) for app, name in pairs if tail and deployment in (name, f"{app}.{name}")}:
            return Choice(frozenset(found), f"{min(found)[1]}-{tail}")
    return None


class LogReader:
    """Reads the lines of what `target` names, the last ones first, then those that come."""

    def __init__(self, state: ClusterState, target: str) -> None:
        self._state = state
        self._target = target
        self._choice = Choice(frozenset())
        self._read_to: dict[tuple[str, str], str] = {}
        self._generation: bytes | None = None

    async def now_ms(self) -> int:
        """The server's clock, by which lines are stamped."""
        seconds, micros = await self._state.link.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def last(self, most: int, since_ms: int = 0) -> list[LogLine]:
        """The last lines, oldest first, at most so many; those of several replicas in the order of their times.

        Raises UsageError that lists what there is when the target names nothing.
        """
        known = await self._known()
        self._choice = await self._chosen(known)
        pages = []
        for deployment in sorted(self._choice.deployments):
            lines, self._read_to[deployment] = await self._last_of(deployment, most, since_ms)
            pages.append(lines)
        merged = list(heapq.merge(*pages, key=_when))
        if not merged and self._choice.replica and not await self._has_replica():
            raise UsageError(f"There is no replica {self._target!r}. {await self._replicas_there()}")
        return merged[-most:] if most else []

    async def coming(self) -> AsyncIterator[list[LogLine]]:
        """Lines as they come, after those that `last` has read; also of deployments that come. Never ends.

        It blocks the connection: nobody else can use the link meanwhile.
        Raises TransportError when the connection is lost; iterating anew goes on where it was.
        """
        while True:
            if not self._read_to:
                raise UsageError(f"Nothing is deployed in namespace {self._state.keys.namespace!r}: nothing to follow.")
            for lines in await self._next():
                yield lines

    async def _next(self) -> list[list[LogLine]]:
        """Wait for lines of any of the streams. What is deployed is looked up again when anything has changed."""
        deployments = list(self._read_to)
        pipe = await self._state.link.ready()
        streams = [self._state.keys.logs(*deployment) for deployment in deployments]
        reply, generation = await asyncio.gather(
            pipe.call("XREAD", "COUNT", _PAGE, "BLOCK", _BLOCK_MS, "STREAMS", *streams, *self._read_to.values()),
            pipe.call("GET", self._state.keys.generation),
        )
        found = []
        by_name = dict(zip(streams, deployments, strict=True))
        for name, rows in reply or ():
            deployment = by_name[name.decode()]
            self._read_to[deployment] = rows[-1][0].decode()
            found.append([line for line in _lines(deployment, rows) if self._choice.has(line)])
        if generation != self._generation:
            self._generation = generation
            await self._look_again()
        return [list(heapq.merge(*found, key=_when))] if any(found) else []

    async def _look_again(self) -> None:
        """Take up deployments of the target that were not there before."""
        choice = choose(self._target, await self._known())
        for deployment in (choice.deployments if choice is not None else ()) - self._read_to.keys():
            self._read_to[deployment] = _NOTHING_YET

    async def _last_of(self, deployment: tuple[str, str], most: int, since_ms: int) -> tuple[list[LogLine], str]:
        """The wanted lines of one stream, oldest first, and the newest id in it."""
        name = self._state.keys.logs(*deployment)
        found: list[LogLine] = []
        newest, before = _NOTHING_YET, "+"
        while rows := await self._state.link.call("XREVRANGE", name, before, since_ms, "COUNT", _PAGE):
            if newest == _NOTHING_YET:
                newest = rows[0][0].decode()
            found += [line for line in _lines(deployment, rows) if self._choice.has(line)]
            if len(rows) < _PAGE or len(found) >= most:
                break
            before = f"({rows[-1][0].decode()}"
        if newest == _NOTHING_YET and since_ms:  # what is older was not asked for, and is not to come either
            newest = f"{since_ms}-0"
        return found[:most][::-1], newest

    async def _chosen(self, known: Mapping[str, Collection[str]]) -> Choice:
        """What the target names. A deployment that was deleted has left its lines: it is found by its whole name."""
        if (choice := choose(self._target, known)) is not None:
            return choice
        app, _, deployment = self._target.partition(".")
        if deployment and await self._state.link.call("EXISTS", self._state.keys.logs(app, deployment)):
            return Choice(frozenset({(app, deployment)}))
        there = "; ".join(f"{name}: {', '.join(sorted(known[name]))}" for name in sorted(known))
        raise UsageError(
            f"There is no application, deployment or replica {self._target!r} in namespace "
            f"{self._state.keys.namespace!r}. There are: {there or 'none'}. "
            "The lines of a deleted one are found by APP.DEPLOYMENT, for a day."
        )

    async def _known(self) -> dict[str, set[str]]:
        """The deployments of each application: wanted ones, and those that are still on their way out."""
        known = {name: {spec.name for spec in app.deployments} for name, app in (await self._state.wanted()).items()}
        for name, status in (await self._state.statuses()).items():
            known.setdefault(name, set()).update(status.deployments)
        return known

    async def _has_replica(self) -> bool:
        return any(name.startswith(self._choice.replica) for name in await self._replica_ids())

    async def _replica_ids(self) -> list[str]:
        names = await self._state.link.call("HKEYS", self._state.keys.replicas)
        return sorted(name.decode(errors="replace") for name in names)

    async def _replicas_there(self) -> str:
        """Replicas of the chosen deployments, for the message: those there are, and those that left lines."""
        begins = tuple(f"{name}-" for _, name in self._choice.deployments)
        names = {name for name in await self._replica_ids() if name.startswith(begins)}
        for deployment in self._choice.deployments:
            rows = await self._state.link.call("XREVRANGE", self._state.keys.logs(*deployment), "+", "-")
            names |= {line.replica_id for line in _lines(deployment, rows)}
        labels = sorted("#".join(name.rsplit("-", 1)) for name in names)
        return f"There are: {', '.join(labels) or 'none'}."


def _when(line: LogLine) -> int:
    return line.at_ms


def _lines(deployment: tuple[str, str], rows: Sequence[Any]) -> list[LogLine]:
    return [_line(deployment, entry_id, fields) for entry_id, fields in rows if fields is not None]


def _line(deployment: tuple[str, str], entry_id: bytes, fields: Sequence[bytes]) -> LogLine:
    """An entry as a line. Anybody who reaches Redis may have written it: nothing in it may end the reader."""
    named = dict(zip(fields[::2], fields[1::2], strict=False))

    def text(name: bytes) -> str:
        return named.get(name, b"").decode(errors="replace")

    return LogLine(
        *deployment,
        replica_id=_printable(text(b"r")),
        pid=int(text(b"p")) if text(b"p").isdecimal() and len(text(b"p")) < 10 else 0,
        host=_printable(text(b"h")),
        text=text(b"l").replace("\n", " "),
        of_worker=b"w" in named,
        at_ms=min(int(entry_id.partition(b"-")[0]), _LAST_MS),
    )


def _printable(name: str) -> str:
    """A name without what could move a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in name)
