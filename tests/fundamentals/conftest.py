"""One cluster for each file of this ring: its tests share the applications that the file deploys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qserve.config import Settings
from tests.support.cluster import Cluster, cluster_in, namespace_on


@pytest.fixture(scope="module")
def settings(broker_url: str) -> Iterator[Settings]:
    """Signed settings in a namespace of the file's own, which this process uses until the file ends."""
    with namespace_on(broker_url) as chosen:
        yield chosen


@pytest.fixture(scope="module")
def cluster(settings: Settings) -> Iterator[Cluster]:
    """An autoscaler and a worker as processes, for all tests of the file."""
    with cluster_in(settings) as running:
        yield running
