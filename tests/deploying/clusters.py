"""The store's records, written and read as other processes of the cluster do."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from qserve.client import portal
from qserve.store.state import ClusterState

T = TypeVar("T")


def on_cluster(work: Callable[[ClusterState], Coroutine[Any, Any, T]]) -> T:
    """Run work on the state of this process's cluster."""
    door = portal.portal()
    return door.run(work(ClusterState(door.core.link, door.core.settings.namespace, door.core.ring)))
