"""Fixtures for all rings: one real broker a session, a namespace a test, processes where a test needs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from qserve.config import Settings
from qserve.store.embedded import EmbeddedBroker, private_folder
from tests.support.cluster import Cluster, cluster_in, namespace_on


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """A real server on a unix socket; one for each test process."""
    broker = EmbeddedBroker(Settings(), private_folder(), keep=False)
    broker.start()
    broker.wait_ready()
    yield broker.url
    broker.stop()


@pytest.fixture
def settings(broker_url: str) -> Iterator[Settings]:
    """Signed settings in a namespace of the test's own, which this process uses until the test ends."""
    with namespace_on(broker_url) as chosen:
        yield chosen


@pytest.fixture
def server(broker_url: str) -> Iterator[redis.Redis]:
    """The server as an outsider sees it, to look at keys and to do harm."""
    client = redis.Redis.from_url(broker_url)
    yield client
    client.close()


@pytest.fixture
def cluster(settings: Settings) -> Iterator[Cluster]:
    """An autoscaler and a worker as processes; `serve.run(...)` in the test deploys to them."""
    with cluster_in(settings) as running:
        yield running
