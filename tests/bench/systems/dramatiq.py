"""dramatiq: lists and Lua scripts, a worker of threads, results popped from a list by a blocking client."""

import asyncio
import itertools
import os
import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from tests.bench.systems.system import TIMEOUT_S, System, check, message

_URL = os.environ.get("BENCH_URL", "redis://127.0.0.1:6379")
_TIMEOUT_MS = int(TIMEOUT_S * 1000)


async def _echo(argument: object) -> object:
    return argument


def _actor() -> Any:
    # Pickle, because the default JSON encoder refuses bytes; both are C.
    encoder = dramatiq.PickleEncoder()
    dramatiq.set_encoder(encoder)
    broker = RedisBroker(url=_URL)
    broker.add_middleware(AsyncIO())
    broker.add_middleware(Results(backend=RedisBackend(url=_URL, encoder=encoder), store_results=True))
    dramatiq.set_broker(broker)
    return dramatiq.actor(_echo, actor_name="echo", max_retries=0)


ECHO = _actor()


class Dramatiq(System):
    """Send, then wait for the result in a thread: the library has no asyncio client."""

    has_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._threads = ThreadPoolExecutor(2)

    def commands(self) -> list[list[str]]:
        """dramatiq's own command line: a master and one worker process."""
        size = ["--processes", "1", "--threads", "100"]
        return [[sys.executable, "-m", "dramatiq", *size, __name__]]

    async def open(self) -> None:
        """The broker of this module connects by itself."""

    async def call(self, argument: object) -> object:
        """As an asyncio application must: in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.call_from_thread, argument)

    def call_from_thread(self, argument: object) -> object:
        """Send and block on the result."""
        result: object = ECHO.send(argument).get_result(block=True, timeout=_TIMEOUT_MS)
        return result

    async def submit(self, count: int) -> None:
        """Send alone."""
        for number in range(count):
            ECHO.send(message(number))

    async def load(self, seconds: float, in_flight: int) -> int:
        """One thread sends, one collects in the order of sending: faster than a thread for every call in flight."""
        loop = asyncio.get_running_loop()
        sent: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        free = threading.Semaphore(in_flight)
        sending = loop.run_in_executor(self._threads, _send, sent, free, seconds)
        collected = await loop.run_in_executor(self._threads, _collect, sent, free)
        await sending
        return collected


def _send(sent: "queue.SimpleQueue[tuple[str, Any] | None]", free: threading.Semaphore, seconds: float) -> None:
    until = time.perf_counter() + seconds
    try:
        for number in itertools.count():
            if time.perf_counter() >= until or not free.acquire(timeout=TIMEOUT_S):
                return
            argument = message(number)
            sent.put((argument, ECHO.send(argument)))
    finally:
        sent.put(None)


def _collect(sent: "queue.SimpleQueue[tuple[str, Any] | None]", free: threading.Semaphore) -> int:
    done = 0
    while (item := sent.get()) is not None:
        argument, waiting = item
        check(argument, waiting.get_result(block=True, timeout=_TIMEOUT_MS))
        free.release()
        done += 1
    return done
