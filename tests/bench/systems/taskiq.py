"""taskiq on a Redis stream: the broker that acknowledges, and a result key that the client polls."""

import base64
import os
import sys
from typing import Any

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from tests.bench.systems.system import TIMEOUT_S, System, message

_URL = os.environ.get("BENCH_URL", "redis://127.0.0.1:6379")


async def _echo(argument: Any) -> Any:
    return argument


def _broker() -> Any:
    results = RedisAsyncResultBackend(redis_url=_URL, result_ex_time=60)
    return RedisStreamBroker(url=_URL).with_result_backend(results)


BROKER = _broker()
ECHO = BROKER.register_task(_echo, task_name="echo")


class Taskiq(System):
    """Kick, then poll: taskiq has no other way to hear of a result."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._poll_s = 0.001

    def commands(self) -> list[list[str]]:
        """taskiq's own command line: a master and one worker process."""
        size = ["--workers", "1", "--max-async-tasks", "100", "--log-level", "WARNING"]
        return [[sys.executable, "-m", "taskiq", "worker", *size, f"{__name__}:BROKER"]]

    async def open(self) -> None:
        """Connects, and makes the consumer group."""
        await BROKER.startup()

    def tune(self, in_flight: int) -> None:
        """With many calls in flight, looking too often costs more than looking late."""
        self._poll_s = 0.001 if in_flight == 1 else 0.05

    async def call(self, argument: object) -> object:
        """Kick and poll the result. Bytes travel as text: arguments and results must be what JSON knows."""
        if isinstance(argument, bytes):
            return base64.b64decode(str(await self.call(base64.b64encode(argument).decode())))
        task = await ECHO.kiq(argument)
        result = await task.wait_result(check_interval=self._poll_s, timeout=TIMEOUT_S)
        result.raise_for_error()
        value: object = result.return_value
        return value

    async def submit(self, count: int) -> None:
        """Kick alone."""
        for number in range(count):
            await ECHO.kiq(message(number))

    async def close(self) -> None:
        """Close the pools."""
        await BROKER.shutdown()
