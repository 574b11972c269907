"""saq: lists, a blocking pop for every one of the worker's lanes, and replies told by pub/sub."""

import asyncio
import contextlib
import os
import pickle
import sys
import time
from typing import Any

from saq.job import TERMINAL_STATUSES, Job, Status
from saq.queue.base import JobError
from saq.queue.redis import RedisQueue

from tests.bench.systems.system import TIMEOUT_S, System, message


async def echo(_context: dict[str, Any], *, argument: object) -> object:
    """The work: none."""
    return argument


def _queue(url: str) -> Any:
    # Pickle, because the default, JSON, cannot carry bytes.
    return RedisQueue.from_url(url, dump=pickle.dumps, load=pickle.loads)


QUEUE = _queue(os.environ.get("BENCH_URL", "redis://127.0.0.1:6379"))
SETTINGS = {"queue": QUEUE, "functions": [echo], "concurrency": 100}


def _is_over(_key: str, status: Any) -> bool:
    return status in TERMINAL_STATUSES


class Saq(System):
    """Listen, enqueue, read: a listener that comes after the job may miss its note.

    `Queue.apply` polls instead, every 0.5 s.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._always: asyncio.Task[None] | None = None

    def commands(self) -> list[list[str]]:
        """saq's own command line; one process."""
        return [[sys.executable, "-m", "saq", "--quiet", f"{__name__}.SETTINGS"]]

    async def open(self) -> None:
        """Connect, and keep the queue's subscription: it ends with its last listener."""
        await QUEUE.connect()
        self._always = asyncio.create_task(QUEUE.listen(["none"], _is_over, timeout=None))

    async def deploy(self) -> None:
        """Wait for the worker: a job that it takes while it starts may be swept as lost, and fail."""
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            with contextlib.suppress(JobError):
                await self.call("awake")
                return

    async def call(self, argument: object) -> object:
        """Enqueue, wait for the note, read the result."""
        job = Job("echo", kwargs={"argument": argument}, ttl=60)
        heard = asyncio.create_task(QUEUE.listen([job.key], _is_over, timeout=TIMEOUT_S))
        await asyncio.sleep(0)
        await QUEUE.enqueue(job)
        await heard
        await job.refresh()
        if job.status is not Status.COMPLETE:
            raise JobError(job)
        result: object = job.result
        return result

    async def submit(self, count: int) -> None:
        """Enqueue alone."""
        for number in range(count):
            await QUEUE.enqueue("echo", argument=message(number))

    async def close(self) -> None:
        """Disconnect."""
        if self._always is not None:
            self._always.cancel()
        await QUEUE.disconnect()
