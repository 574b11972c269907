"""A web backend as a process: deploys, submits calls at a steady rate, and answers questions on stdin with JSON lines.

    python -m tests.acceptance.backend LEDGER REPLICAS CALLS_PER_SECOND

Questions: `where` (serving replicas by node), `leader`, `counts`, and `stop` (submit no more, wait for all, report).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

import redis.asyncio as redis

import qserve as serve
from qserve.client import portal
from qserve.spec import ReplicaRecord
from qserve.wire.keys import ROOT, ClusterKeys
from tests.acceptance.ledger import Clerk

_CALL_S = 0.05


class Backend:
    """Submits, and counts: answers by ticket, errors in words, notes in the inboxes by call."""

    def __init__(self, handle: Any, per_second: float) -> None:
        self.submitted = 0
        self.answers: Counter[int] = Counter()
        self.errors: list[str] = []
        self.notes: Counter[bytes] = Counter()
        self.done = asyncio.Event()
        self._handle = handle
        self._pause_s = 1 / per_second
        self._waiting = 0
        settings = portal.settings()
        self._keys = ClusterKeys(settings.namespace)
        self._server = redis.Redis.from_url(settings.redis_url or "")

    async def submit(self) -> None:
        """Submit until cancelled."""
        while True:
            ticket, self.submitted = self.submitted, self.submitted + 1
            self._waiting += 1
            self._handle.work.remote(ticket, seconds=_CALL_S).add_done_callback(self._answered)
            await asyncio.sleep(self._pause_s)

    def _answered(self, response: Any) -> None:
        self._waiting -= 1
        if (error := response.exception()) is not None:
            self.errors.append(repr(error))
        else:
            self.answers[response.result()] += 1

    async def overhear(self) -> None:
        """Count what is told to inboxes: two notes of one call are a double answer."""
        async with self._server.pubsub() as heard:
            await heard.psubscribe(f"{ROOT}:inbox:*")
            async for message in heard.listen():
                if message["type"] == "pmessage":
                    self.notes.update(calls_in(message["data"]))

    async def answer(self, question: str) -> dict[str, Any]:
        """What was asked for."""
        if question == "where":
            raw = await self._server.hvals(self._keys.replicas)
            records = [ReplicaRecord.model_validate_json(value) for value in raw]
            return dict(Counter(record.node_id for record in records if record.serves))
        if question == "leader":
            holder = await self._server.get(self._keys.leader)
            return {"holder": holder.decode() if isinstance(holder, bytes) else ""}
        return {
            "submitted": self.submitted,
            "answered": self.answers.total(),
            "twice": [ticket for ticket, count in self.answers.items() if count > 1],
            "told twice": [call.hex() for call, count in self.notes.items() if count > 1],
            "told": len(self.notes),
            "errors": self.errors[:5],
        }

    async def finish(self, within_s: float) -> None:
        """Wait until every call is answered."""
        async with asyncio.timeout(within_s):
            while self._waiting:  # noqa: ASYNC110 (a test's process; the answers come by callbacks)
                await asyncio.sleep(0.05)


def calls_in(note: bytes) -> list[bytes]:
    """The call ids in a note: each reply behind its length, or a bare call id behind 0."""
    found = []
    while note:
        size, note = int.from_bytes(note[:4]), note[4:]
        reply, note = note[: size or 16], note[size or 16 :]
        found.append(reply[10:26] if size else reply)
    return found


async def main(ledger: str, replicas: int, per_second: float) -> None:
    """Deploy, then work until told to stop."""
    app = Clerk.options(num_replicas=replicas).bind(ledger)
    handle = await asyncio.to_thread(serve.run, app)
    backend = Backend(handle, per_second)
    overhearing = asyncio.create_task(backend.overhear())
    submitting = asyncio.create_task(backend.submit())
    say({"running": True})
    while (question := (await asyncio.to_thread(sys.stdin.readline)).strip()) not in ("", "stop"):
        say(await backend.answer(question))
    submitting.cancel()
    await backend.finish(within_s=60)
    say(await backend.answer("counts"))
    overhearing.cancel()


def say(answer: dict[str, Any]) -> None:
    """One line on stdout."""
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
