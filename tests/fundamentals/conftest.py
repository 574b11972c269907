"""One cluster for each file of this ring: its tests share the applications that the file deploys."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from qserve.client import portal
from qserve.config import Settings
from tests.conftest import SECRET
from tests.support.cluster import Cluster


@pytest.fixture(scope="module")
def settings(broker_url: str) -> Iterator[Settings]:
    """Signed settings in a namespace of the file's own, which this process uses until the file ends."""
    chosen = Settings(redis_url=broker_url, namespace=f"t{secrets.token_hex(4)}", secrets=(SECRET,))
    portal.use(chosen)
    yield chosen
    portal.use(None)


@pytest.fixture(scope="module")
def cluster(settings: Settings) -> Iterator[Cluster]:
    """An autoscaler and a worker as processes, for all tests of the file."""
    running = Cluster(settings)
    running.start_autoscaler()
    running.start_worker()
    yield running
    running.stop()
