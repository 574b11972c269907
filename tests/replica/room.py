"""Replicas in the test's own process: their loops, without the processes around them."""

from __future__ import annotations

import asyncio
from typing import Any

from qserve.client.handle import DeploymentHandle
from qserve.config import DeploymentConfig, Settings
from qserve.context import current_call
from qserve.replica.load import Servable
from qserve.replica.serve import Server
from qserve.spec import Assignment, DeploymentSpec


class Work:
    """Counts how many calls are at work."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.now = self.most = 0
        self.attempts: set[int] = set()

    async def hold(self, _value: object = None) -> None:
        """Work until the gate is open."""
        self.now += 1
        self.most = max(self.most, self.now)
        context = current_call.get()
        assert context is not None
        self.attempts.add(context.attempt)
        await self.gate.wait()
        self.now -= 1

    async def echo(self, value: Any) -> Any:
        return value


class Room:
    """Servers in this process, each of one deployment; their calls come over Redis like any others."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running: list[tuple[Server, asyncio.Task[None]]] = []
        self.retiring: list[str] = []

    async def start(self, name: str, target: Any, *, number: int = 1, paused: bool = False, **options: Any) -> Server:
        """One more replica; what it says of retiring is kept in `retiring`."""
        assignment = Assignment(replica_id=f"app-{name}-{number}", node_id="n", app="app", deployment=name, version="1")
        spec = spec_of(name, paused=paused, **options)
        server = Server(self._settings, assignment, spec, Servable(target), on_retire=self.retiring.append)
        await server.connect()
        self._running.append((server, asyncio.create_task(server.run())))
        return server

    async def close(self) -> None:
        """Drain all."""
        for server, running in self._running:
            if not server._draining:
                await server.drain(0.1)
            await asyncio.wait([running], timeout=5)


def spec_of(name: str, *, paused: bool = False, slots: int = 1, **options: Any) -> DeploymentSpec:
    """A deployment with these options."""
    config = DeploymentConfig(max_ongoing_requests=slots, **options)
    return DeploymentSpec(app="app", name=name, version="1", config=config, python="3.11", replicas=1, paused=paused)


def handle(name: str) -> DeploymentHandle[Any]:
    """A caller's handle of a deployment in the room."""
    return DeploymentHandle(name, "app")
