"""Replies on their way to the store, one script a turn of the loop. None is dropped while Redis is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from qserve.store import calls as store
from qserve.store.calls import Finished
from qserve.store.link import Link
from qserve.wire.keys import DeploymentKeys

logger = logging.getLogger("qserve.replica")

# How long a refused reply waits before it is offered again (out of memory, no permission).
_REFUSED_RETRY_S = 0.5
# The same as of a client's puts: one that is larger holds up all that share the connection.
_MOST_BATCH_BYTES = 4 * 1024 * 1024


class ReplyBox:
    """Stores replies; sends again what was not confirmed, which the store takes once.

    on_stored  called when Redis has confirmed some
    """

    def __init__(self, link: Link, keys: DeploymentKeys, on_stored: Callable[[], None]) -> None:
        self._on_stored = on_stored
        self._link = link
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._out: list[Finished] = []
        self._sent: dict[bytes, Finished] = {}
        self._scheduled = False
        self.fenced = 0

    @property
    def owed(self) -> int:
        """How many replies Redis has not confirmed."""
        return len(self._out) + len(self._sent)

    def entry_ids(self) -> set[bytes]:
        """The entries whose replies are on their way."""
        return {done.entry.entry_id for done in self._out} | self._sent.keys()

    def add(self, done: Finished) -> None:
        """Store this reply with all others of this turn."""
        self._out.append(done)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what waits, if there is a connection."""
        self._scheduled = False
        pipe = self._link.pipe
        if pipe is None:
            self._link.start()
            return
        out, self._out = self._out, []
        for stream in (self._keys.front, self._keys.calls):
            chosen = [done for done in out if done.entry.stream == stream]
            for batch in _cut(chosen):
                self._sent.update((done.entry.entry_id, done) for done in batch)
                store.finish(pipe, self._keys, stream, batch, partial(self._confirm, batch))

    def _confirm(self, batch: list[Finished], reply: Any) -> None:
        for done in batch:
            self._sent.pop(done.entry.entry_id, None)
        if not isinstance(reply, Exception):
            self.fenced += reply
            self._on_stored()
            return
        logger.warning("%d replies could not be stored and are offered again: %s", len(batch), reply)
        self._out.extend(batch)
        self._loop.call_later(_REFUSED_RETRY_S, self.flush)


def _cut(replies: Sequence[Finished]) -> Iterator[list[Finished]]:
    """The replies in their order, in batches that one script may store; one that is too large for any travels alone."""
    batch: list[Finished] = []
    size_bytes = 0
    for done in replies:
        size_bytes += len(done.reply)
        if batch and (len(batch) == store.MOST_PER_SCRIPT or size_bytes > _MOST_BATCH_BYTES):
            yield batch
            batch, size_bytes = [], len(done.reply)
        batch.append(done)
    if batch:
        yield batch
