"""What replicas write, on its way to the worker's stdout and to Redis. Neither may ever hold up the worker."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
from collections import Counter, deque
from dataclasses import dataclass, replace
from itertools import count

from qserve.errors import TransportError
from qserve.spec import Assignment, ExitCause, ReplicaRecord, ReplicaState
from qserve.store import logs
from qserve.store.logs import LogLine
from qserve.store.state import ClusterState

logger = logging.getLogger("qserve.worker")

# One write to Redis in this time, of so much at the most: a chatty replica costs the server no more than that.
_EVERY_S = 0.2
_BATCH_LINES = 400
_BATCH_BYTES = 512 * 1024
_AGAIN_AFTER_S = 1.0
# How long a worker that leaves waits for what is still to be written.
LAST_WRITE_S = 1.0
# What waits for a reader of stdout, who may have stopped reading.
_UNREAD_BYTES = 1024 * 1024


class BoundedWriter:
    """Writes to a file descriptor from a thread of its own, as long as somebody reads; also a stream for `logging`.

    What does not fit into `most_bytes` meanwhile is dropped, and a line says how many lines that were.
    """

    def __init__(self, fd: int, most_bytes: int = _UNREAD_BYTES) -> None:
        self._fd = fd
        self._most_bytes = most_bytes
        self._parts: list[bytes] = []
        self._size = 0  # also of what the thread is writing
        self._dropped = 0
        self._broken = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> int:
        """Take a text to be written. Never waits."""
        data = text.encode(errors="replace")
        with self._changed:
            if self._broken:
                return len(text)
            if self._dropped or self._size + len(data) > self._most_bytes:
                self._dropped += 1  # and all that follows, until some is read: the gap is in one place
                return len(text)
            self._parts.append(data)
            self._size += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"writes-to-{self._fd}", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """For `logging`: the thread writes as fast as is read."""

    def settle(self, within_s: float) -> bool:
        """Wait until all is written, for so long at the most. Whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._broken or not self._size, within_s)

    def _run(self) -> None:
        while True:
            data = self._take()
            try:
                self._write_all(memoryview(data))
            except (OSError, ValueError):  # whoever read it has gone, as in `qserve worker | head`
                with self._changed:
                    self._broken = True
                    self._parts.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._size -= len(data)
                self._changed.notify_all()

    def _take(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._parts or self._dropped))
            if self._dropped:
                gap = (
                    f"(qserve: {self._dropped} lines are not shown here: they came faster than this is read)\n".encode()
                )
                self._parts.append(gap)
                self._size += len(gap)
                self._dropped = 0
            data = b"".join(self._parts)
            self._parts.clear()
            return data

    def _write_all(self, rest: memoryview) -> None:
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody has made it non-blocking, as terminals' programs do
                select.select([], [self._fd], [])


class Output:
    """Where the lines of a worker's replicas go. All of it on the worker's event loop.

    keep  about how many lines of each deployment stay in Redis; 0 keeps none
    """

    def __init__(self, state: ClusterState, host: str, *, keep: int, stdout: BoundedWriter) -> None:
        self._state = state
        self._host = host
        self._keep = keep
        self._stdout = stdout
        self._pending: dict[str, _Pending] = {}
        self._lost: Counter[str] = Counter()  # lines that were sent and did not arrive, by replica
        self._order = count()
        self._task: asyncio.Task[None] | None = None

    def line(self, replica: Assignment, pid: int, text: str) -> None:
        """A line that a replica wrote."""
        self._stdout.write(f"({_line(replica, pid, '', '').label} pid={pid}) {text}\n")
        self._add(_line(replica, pid, self._host, text))

    def tell(self, replica: ReplicaRecord, *, has_ended: bool = False) -> None:
        """What the worker has to say of a replica, among its lines: what became of it now."""
        for text in _news(replica, has_ended=has_ended).splitlines():
            self._add(_line(replica, replica.pid, self._host, text, of_worker=True))

    async def close(self) -> None:
        """Store what has come, if that is quick; for the end of the worker. Safe to call twice."""
        if self._task is not None:
            self._task.cancel()
        await asyncio.to_thread(self._stdout.settle, LAST_WRITE_S)
        try:
            async with asyncio.timeout(LAST_WRITE_S):
                while self._pending:
                    await self._store()
        except (TimeoutError, TransportError) as error:
            logger.warning("The last lines of replicas did not reach Redis: %s", error)

    def _add(self, line: LogLine) -> None:
        if not self._keep:
            return
        pending = self._pending.setdefault(line.replica_id, _Pending())
        pending.add(next(self._order), line)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._store_all(), name="log-lines")

    async def _store_all(self) -> None:
        """Store what comes, batch by batch, until nothing is left. While Redis is away the newest lines wait for it."""
        while self._pending:
            await asyncio.sleep(_EVERY_S)
            try:
                await self._store()
            except TransportError:  # the link says so itself
                await asyncio.sleep(_AGAIN_AFTER_S)

    async def _store(self) -> None:
        await self._state.link.ready()  # while it is not, lines stay where the newest ones are kept
        batch = self._take()
        lines = [entry.line for entry in batch]
        for index in await logs.append(self._state.link, self._state.keys, lines, self._keep):
            self._lost[lines[index].replica_id] += batch[index].stands_for

    def _take(self) -> list[_Entry]:
        """What has come, in its order. No replica gets more than its share of a batch: the newest of its lines."""
        share = len(self._pending)
        taken: list[_Entry] = []
        for replica_id, pending in self._pending.items():
            pending.trim(max(1, _BATCH_LINES // share), _BATCH_BYTES // share)
            taken += pending.entries
            first = pending.entries[0]
            if skipped := pending.skipped + self._lost.pop(replica_id, 0):
                taken.append(_gap(first, skipped))
        self._pending.clear()
        taken.sort(key=lambda entry: entry.place)
        return taken


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line on its way to Redis. `stands_for` so many: a gap tells of the lines that it takes the place of."""

    place: float
    line: LogLine
    stands_for: int = 1


class _Pending:
    """The newest lines of one replica, and how many before them were skipped."""

    def __init__(self) -> None:
        self.entries: deque[_Entry] = deque()
        self.skipped = 0
        self._size = 0

    def add(self, place: int, line: LogLine) -> None:
        self.entries.append(_Entry(place, line))
        self._size += _size_of(line)
        self.trim(_BATCH_LINES, _BATCH_BYTES)

    def trim(self, most_lines: int, most_bytes: int) -> None:
        while len(self.entries) > most_lines or (self._size > most_bytes and len(self.entries) > 1):
            self._size -= _size_of(self.entries.popleft().line)
            self.skipped += 1


def _news(replica: ReplicaRecord, *, has_ended: bool) -> str:
    """A replica's state in words. Its last output, which a message may end with, is among its lines already."""
    message = replica.message.partition(" Its last output:\n")[0]
    if has_ended:
        was_told = replica.cause is ExitCause.START  # when it failed to start: that is why it has ended
        return f"Process {replica.pid} has ended." if was_told or not message else message
    if replica.state is ReplicaState.STARTING:
        return f"Process {replica.pid} is started."
    if replica.state is ReplicaState.UPDATING:
        return "It is being reconfigured."
    if replica.state is ReplicaState.RUNNING:
        return f"It is to be replaced: {replica.retiring}" if replica.retiring else "It takes calls."
    if replica.state is ReplicaState.STOPPING:
        return f"It is stopped: {message}" if message else "It is stopped: it is not wanted here any more."
    return f"It did not start: {message}"


def _size_of(line: LogLine) -> int:
    return len(line.text) + 100  # its fields have about so many bytes


def _line(replica: Assignment, pid: int, host: str, text: str, *, of_worker: bool = False) -> LogLine:
    return LogLine(replica.app, replica.deployment, replica.replica_id, pid, host, logs.cut(text), of_worker)


def _gap(before: _Entry, lines: int) -> _Entry:
    """What stands for so many lines, just before the entry."""
    text = f"({lines} lines are missing here: they came too fast, or Redis could not take them)"
    return _Entry(before.place - 0.5, replace(before.line, text=text, of_worker=True), lines)
