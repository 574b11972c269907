"""Replicas that are not well are replaced; so are those that have served long enough. No call is lost by it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import qserve as serve
from qserve.handle import DeploymentHandle
from qserve.spec import DeploymentStatusInfo
from tests.support.cluster import eventually

Handle = DeploymentHandle[Any]
pytestmark = pytest.mark.usefixtures("cluster")


@serve.deployment(num_replicas=2, health_check_period_s=0.1, health_check_timeout_s=1.0)
class Careful:
    """Knows by itself when it is not well: when a file with its pid is there."""

    def __init__(self, folder: str) -> None:
        self._illness = Path(folder) / str(os.getpid())

    def check_health(self) -> None:
        if self._illness.exists():
            raise RuntimeError("the connection pool is empty")

    async def pid(self, pause_s: float = 0.0) -> int:
        await asyncio.sleep(pause_s)
        return os.getpid()


@serve.deployment(max_calls_per_replica=20)
class Leaky:
    """Wraps a library that loses memory with each call."""

    def __call__(self) -> int:
        return os.getpid()


@serve.deployment(health_check_period_s=0.1, health_check_timeout_s=0.3, graceful_shutdown_timeout_s=0.5)
class Plain:
    """Has no check of its own: that its process answers is checked all the same."""

    def pid(self) -> int:
        return os.getpid()


def pids(handle: Handle, calls: int = 40) -> set[int]:
    """Who answers."""
    return set(serve.get([handle.pid.remote() for _ in range(calls)], timeout_s=10))


def both(handle: Handle) -> set[int]:
    """Who answers, once these are two."""
    seen: set[int] = set()

    def are_two() -> bool:
        seen.clear()
        seen.update(pids(handle))
        return len(seen) == 2

    eventually(are_two, within_s=20)
    return seen


def shown(app: str, deployment: str) -> DeploymentStatusInfo:
    """A deployment's line in the status."""
    return serve.status().applications[app].deployments[deployment]


def test_only_the_sick_replica_is_replaced(tmp_path):
    """Its neighbour is well and has its caches; the calls that the sick one runs are finished."""
    handle = serve.run(Careful.bind(str(tmp_path)), name="careful")
    sick, well = both(handle)
    running = [handle.pid.remote(0.5) for _ in range(8)]
    (tmp_path / str(sick)).touch()

    eventually(lambda: sick not in pids(handle), within_s=20)
    assert well in both(handle)
    assert {response.result(timeout_s=10) for response in running} <= {sick, well}
    eventually(lambda: shown("careful", "Careful").status == "HEALTHY", within_s=20)


def test_a_process_that_answers_nothing_is_replaced():
    """Stopped, deadlocked, or lost in native code: the kernel takes it for alive."""
    handle = serve.run(Plain.bind(), name="plain")
    before = handle.pid.remote().result(timeout_s=10)
    os.kill(before, signal.SIGSTOP)

    assert handle.pid.remote().result(timeout_s=20) != before


def test_an_application_that_is_never_well_does_not_deploy(tmp_path):
    """The first check is part of the start: its error is what `serve.run` raises."""

    @serve.deployment(max_constructor_retry_count=1)
    class Never:
        def check_health(self) -> None:
            raise RuntimeError("the licence has expired")

    with pytest.raises(serve.errors.DeployFailed, match="the licence has expired"):
        serve.run(Never.bind(), name="never", timeout_s=20)
    serve.delete("never")


def test_a_replica_that_has_served_enough_is_replaced_without_a_gap():
    """Each process answers about as many calls as it may; every call is answered."""
    handle = serve.run(Leaky.bind(), name="leaky")
    first = handle.remote().result(timeout_s=10)
    answers = [first]

    def replaced() -> bool:
        answers.append(handle.remote().result(timeout_s=10))
        return len(set(answers)) >= 3

    eventually(replaced, within_s=30)
    assert answers.count(first) >= 20
