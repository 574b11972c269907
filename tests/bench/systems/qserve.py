"""qserve as its users have it: an async deployment, a worker, an autoscaler, a handle."""

import asyncio
import os
import subprocess
import sys
import time
from typing import Any

import qserve as serve
from tests.bench.systems.system import TIMEOUT_S, System, check, message

_SCRIPT = "tests.bench.systems.embedded_script"
_APP = "bench"
_SECOND_APP = "second"


class Echo:
    """The work: none."""

    async def __call__(self, argument: object) -> object:
        """Answer with what came."""
        return argument


# Not as a decorator: type checkers take a decorated class for the class itself, which has no `bind`.
DEPLOYMENT = serve.deployment(Echo).options(max_ongoing_requests=100)


class QServe(System):
    """A handle in the client; `qserve worker` and `qserve autoscaler` beside it."""

    has_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._handle: Any = None
        self._kept: list[Any] = []

    def commands(self) -> list[list[str]]:
        """The two daemons, by the doors that need no command line library."""
        return [[sys.executable, "-m", door] for door in ("qserve.node", "qserve.controller")]

    async def open(self) -> None:
        """Nothing yet: a handle comes with the application."""

    async def deploy(self) -> None:
        """Run the echo; returns when its replica is ready."""
        self._handle = await asyncio.to_thread(serve.run, DEPLOYMENT.bind(), name=_APP)

    async def call(self, argument: object) -> object:
        """The handle, awaited."""
        reply: object = await self._handle.remote(argument)
        return reply

    def call_from_thread(self, argument: object) -> object:
        """The handle, blocking."""
        reply: object = self._handle.remote(argument).result(timeout_s=TIMEOUT_S)
        return reply

    async def submit(self, count: int) -> None:
        """Put alone; the responses are kept, because a dropped one may count as unwanted."""
        self._kept = [self._handle.remote(message(number)) for number in range(count)]

    async def extras(self) -> dict[str, float]:
        """How fast something new answers: a replica in a running cluster, and a script that has no cluster."""
        return await asyncio.to_thread(
            lambda: {"replica_start_s": _replica_start(), "embedded_start_s": _script_start()}
        )

    async def close(self) -> None:
        """Nothing: what runs here ends with the visit."""


def _replica_start() -> float:
    started = time.perf_counter()
    handle: Any = serve.run(DEPLOYMENT.bind(), name=_SECOND_APP)
    check(message(1), handle.remote(message(1)).result(timeout_s=TIMEOUT_S))
    elapsed = time.perf_counter() - started
    serve.delete(_SECOND_APP)
    return elapsed


def _script_start() -> float:
    """From starting Python to the first reply, with broker, worker, autoscaler and replica embedded."""
    environment = {key: value for key, value in os.environ.items() if key != "QSERVE_REDIS_URL"}
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", _SCRIPT], stdout=subprocess.PIPE, env=environment) as script:
        assert script.stdout is not None
        check(b"first reply\n", script.stdout.readline())
        elapsed = time.perf_counter() - started
        script.wait(TIMEOUT_S)
    return elapsed
