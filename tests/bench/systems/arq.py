"""arq: a sorted set that the worker polls, and a result key that the client polls."""

import os
import sys
from typing import Any

import arq
from arq.connections import RedisSettings

from tests.bench.systems.system import TIMEOUT_S, System, message


async def echo(_context: dict[str, Any], argument: object) -> object:
    """The work: none."""
    return argument


class WorkerSettings:
    """What `python -m arq` reads."""

    functions = (echo,)
    max_jobs = 100
    poll_delay = 0.001
    keep_result = 60
    redis_settings = RedisSettings.from_dsn(os.environ.get("BENCH_URL", "redis://127.0.0.1:6379"))


class Arq(System):
    """Enqueue, then poll: arq has no other way to hear of a result."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._poll_s = 0.001
        self._pool: Any = None

    def commands(self) -> list[list[str]]:
        """arq's own command line; one process."""
        return [[sys.executable, "-m", "arq", f"{__name__}.WorkerSettings"]]

    async def open(self) -> None:
        """One pool, as a web backend would hold it."""
        self._pool = await arq.create_pool(RedisSettings.from_dsn(self.url))

    def tune(self, in_flight: int) -> None:
        """With many calls in flight, looking often costs more than it brings: there arq's own default is best."""
        self._poll_s = 0.001 if in_flight == 1 else 0.5

    async def call(self, argument: object) -> object:
        """Enqueue and poll the result."""
        job = await self._pool.enqueue_job("echo", argument)
        result: object = await job.result(timeout=TIMEOUT_S, poll_delay=self._poll_s)
        return result

    async def submit(self, count: int) -> None:
        """Enqueue alone."""
        for number in range(count):
            await self._pool.enqueue_job("echo", message(number))

    async def close(self) -> None:
        """Close the pool."""
        await self._pool.aclose()
