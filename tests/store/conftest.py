"""The store against real servers: each test in a namespace of its own, watched for what it leaves behind."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import redis

from qserve.config import Settings
from qserve.store.connection import endpoint_of
from qserve.store.embedded import EmbeddedBroker, private_folder
from qserve.store.link import Link
from qserve.store.state import ClusterState
from qserve.wire.keys import DeploymentKeys, deployment_keys
from qserve.wire.signing import KeyRing
from tests.store.leftovers import clean, survey
from tests.store.queue import Ear, Queue

# Servers that the scripts must run on, beside the embedded one: the oldest that is supported.
OLDEST = "redis-server"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known by which a test declares what it leaves."""
    config.addinivalue_line("markers", "leaves(**counts): what a store test leaves in its namespace, and no more")


@pytest.fixture(scope="session", params=["embedded", OLDEST])
def broker_url(request: pytest.FixtureRequest, broker_url: str) -> Iterator[str]:
    """Every test of this ring runs on the embedded server and, where it is installed, on the system's redis-server."""
    if request.param == "embedded":
        yield broker_url
        return
    if shutil.which(OLDEST) is None:
        pytest.skip(f"{OLDEST} is not on PATH")
    broker = EmbeddedBroker(Settings(broker_binary=OLDEST), private_folder(), keep=False)
    broker.start()
    broker.wait_ready()
    yield broker.url
    broker.stop()


@pytest.fixture(autouse=True)
def leftovers(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test, only what its `leaves` marker declares may remain: a leak of a key for each call adds up."""
    if "broker_url" not in request.fixturenames:  # a pure test
        yield
        return
    settings: Settings = request.getfixturevalue("settings")
    yield
    marker = request.node.get_closest_marker("leaves")
    declared = {} if marker is None else marker.kwargs
    with redis.Redis.from_url(settings.redis_url or "") as server:
        try:
            found = survey(server, settings.namespace)
        finally:
            clean(server, settings.namespace)
    assert found == declared, f"left in Redis: {found}; declared: {declared}"


@pytest.fixture
def keys(settings: Settings) -> DeploymentKeys:
    """The keys of a deployment."""
    return deployment_keys(settings.namespace, "app", "Echo")


@pytest.fixture
def ring(settings: Settings) -> KeyRing:
    """The secrets of the namespace."""
    return KeyRing(settings.secrets)


@pytest.fixture
async def link(settings: Settings) -> AsyncIterator[Link]:
    """A connection."""
    opened = Link(endpoint_of(settings), "test")
    await opened.ready()
    yield opened
    await opened.close()


@pytest.fixture
def state(link: Link, settings: Settings, ring: KeyRing) -> ClusterState:
    """The namespace's state."""
    return ClusterState(link, settings.namespace, ring)


@pytest.fixture
async def queue(link: Link, ring: KeyRing, keys: DeploymentKeys) -> Queue:
    """The deployment's queue, open and empty."""
    opened = Queue(link, ring, keys)
    await opened.open()
    return opened


@pytest.fixture
async def ear(settings: Settings, queue: Queue) -> AsyncIterator[Ear]:
    """A caller's inbox, subscribed."""
    opened = Ear(endpoint_of(settings), queue.inbox)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def full(server: redis.Redis) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the server is at its maxmemory, and refuses what needs more."""

    @contextmanager
    def at_maxmemory() -> Iterator[None]:
        server.config_set("maxmemory", 1)
        try:
            yield
        finally:
            server.config_set("maxmemory", 0)

    return at_maxmemory
