"""Schedulers as processes, each on the test's own namespace; the test plays the replicas that their calls come to."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sysconfig
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qserve.client.handle import DeploymentHandle
from qserve.config import DeploymentConfig, Settings
from qserve.errors import TransportError
from qserve.spec import AppSpec, DeploymentSpec
from qserve.store import calls
from qserve.store.calls import Entry
from qserve.store.connection import endpoint_of
from qserve.store.crons import Crons
from qserve.store.embedded import EmbeddedBroker, private_folder
from qserve.store.link import Link
from qserve.store.state import ClusterState
from qserve.wire import codec
from qserve.wire.keys import deployment_keys
from qserve.wire.messages import Call, open_call
from qserve.wire.signing import Direction, KeyRing
from tests.support.cluster import ROOT, namespace_on

QSERVE = str(Path(sysconfig.get_path("scripts")) / "qserve")


_ECHO = DeploymentSpec(app="app", name="Echo", version="v1", config=DeploymentConfig(), python="3.11", replicas=1)
APP = AppSpec(name="app", ingress="Echo", deployments=(_ECHO,), deployed_at_s=1.0, deploy_id="d1")


class Broker:
    """A server that can be restarted: its data stays."""

    def __init__(self) -> None:
        self.folder = private_folder()
        self._served = EmbeddedBroker(Settings(), self.folder, keep=True)
        self.url = self._served.url

    def start(self) -> None:
        """Start it; what it held is there again."""
        self._served = EmbeddedBroker(Settings(), self.folder, keep=True)
        self._served.start()
        self._served.wait_ready()

    def stop(self) -> None:
        """Stop it as a shutdown of its host does."""
        self._served.stop()

    def remove(self) -> None:
        """Stop it for good."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Schedulers:
    """`qserve scheduler` processes. All end with the test."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """One more."""
        env = self._settings.child_env() | {"PYTHONPATH": str(ROOT)}
        with self._log(len(self.running)).open("wb") as log:
            command = [QSERVE, "scheduler", "--log-level", "info"]
            process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=log, cwd=self._folder)
        self.running.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9."""
        process.kill()
        process.wait()

    def said(self, number: int = 0) -> str:
        """What one has logged."""
        return self._log(number).read_text()

    def stop(self) -> None:
        """End all that run; each must end well. What they logged is shown when the test fails."""
        for number in range(len(self.running)):
            print(self.said(number))  # noqa: T201 (pytest shows it)
        for process in self.running:
            if process.poll() is None:
                process.terminate()
                assert process.wait(15) == 0, "a scheduler does not end well"

    def _log(self, number: int) -> Path:
        return self._folder / f"scheduler-{number}.log"


class Desk:
    """The queue of a deployment, on which the calls of schedulers come."""

    def __init__(self, settings: Settings) -> None:
        self.keys = deployment_keys(settings.namespace, "app", "Echo")
        self.link = Link(endpoint_of(settings), "test-desk", silence_s=60)
        self.ring = KeyRing(settings.secrets)
        self.state = ClusterState(Link(endpoint_of(settings), "test-state"), settings.namespace, self.ring)
        self.crons = Crons(self.state, self.ring)

    async def open(self) -> None:
        """Deploy the application: its queue takes calls."""
        await self.state.deploy(APP, {})

    async def next(self, within_s: float = 15.0) -> Call:
        """The next call; it stays pending. Waits for Redis, too."""
        entries: list[Entry] = []
        async with asyncio.timeout(within_s):
            while not entries:
                with suppress(TransportError):
                    entries = await calls.claim(await self.link.ready(), self.keys, "r1", 1, 5000)
        return open_call(entries[0].envelope, self.ring.signer(Direction.CALL, self.keys.scope))

    async def comes_nothing(self, for_s: float) -> bool:
        """Whether no call comes for so long."""
        return not await calls.claim(await self.link.ready(), self.keys, "r1", 1, round(for_s * 1000))

    async def close(self) -> None:
        """Leave."""
        await self.link.close()
        await self.state.link.close()


def due_of(call: Call) -> float:
    """The moment that a run's call is for: its id opens with it."""
    return int.from_bytes(call.call_id[:6]) / 1000


def arguments_of(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What it was called with."""
    return codec.decode_arguments(call.payload, call.serializer, call.flags, {})


@pytest.fixture
def restartable() -> Iterator[Broker]:
    """A server of the test's own."""
    broker = Broker()
    broker.start()
    yield broker
    broker.remove()


@pytest.fixture
def on_restartable(restartable: Broker) -> Iterator[Settings]:
    """Settings of a namespace on that server, which this process uses."""
    with namespace_on(restartable.url) as chosen:
        yield chosen


@pytest.fixture
def schedulers(settings: Settings, tmp_path: Path) -> Iterator[Schedulers]:
    """None at first."""
    started = Schedulers(settings, tmp_path)
    yield started
    started.stop()


@pytest.fixture
async def desk(settings: Settings) -> AsyncIterator[Desk]:
    """An open queue, and the namespace's recurring calls."""
    opened = Desk(settings)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def echo() -> DeploymentHandle[object]:
    """The handle of that deployment."""
    return DeploymentHandle("Echo", "app")
