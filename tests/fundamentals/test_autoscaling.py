"""Autoscaling: replicas follow the calls, down to none and back, and no call notices."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import qserve as serve
from qserve import api
from qserve.errors import DeploymentUnavailableError
from qserve.handle import DeploymentHandle
from tests.support.cluster import Cluster, eventually

# Short delays, so that a test sees in seconds what takes minutes.
SOON = {"downscale_delay_s": 1, "downscale_to_zero_delay_s": 0.5, "look_back_period_s": 0.5}


@serve.deployment(max_ongoing_requests=2, autoscaling_config={"min_replicas": 0, "max_replicas": 12, **SOON})
class Sleeper:
    """Says when its process began, and when it was ready for calls."""

    def __init__(self) -> None:
        self._times = psutil.Process().create_time(), time.time()

    async def __call__(self, seconds: float = 0.0) -> tuple[float, float]:
        await asyncio.sleep(seconds)
        return self._times


@serve.deployment(max_ongoing_requests=2)
class Clerk:
    """Notes each call in a file that qserve knows nothing of."""

    def __init__(self, ledger: str) -> None:
        self._ledger = Path(ledger)

    async def __call__(self, ticket: int) -> int:
        with self._ledger.open("a") as file:
            file.write(f"{ticket} {os.getpid()}\n")
        await asyncio.sleep(0.1)
        return ticket


def replicas(app: str) -> Counter[str]:
    """How many replicas there are, by state."""
    return Counter(str(replica.state) for replica in api.replicas() if replica.app == app)


def steps(app: str, deployment: str) -> list[tuple[int, int]]:
    """What the autoscaler decided, in order: from how many replicas to how many."""
    decided = api.decisions(app)[f"{app}.{deployment}"]
    return [(decision.before, decision.after) for decision in reversed(decided)]


@pytest.fixture
def sleeper(cluster: Cluster) -> Iterator[DeploymentHandle[Any]]:
    """An application with no replicas."""
    handle = serve.run(Sleeper.bind(), name="sleeper")
    eventually(lambda: not replicas("sleeper"), what="it sleeps")
    yield handle
    serve.delete("sleeper")


def test_an_application_at_zero_is_deployed_and_runs_nothing(sleeper):
    """It is RUNNING, ready for calls, and takes no memory."""
    assert serve.status().applications["sleeper"].status == "RUNNING"
    assert not replicas("sleeper")


def test_the_first_call_starts_a_replica_and_is_answered_by_it(sleeper):
    """Nobody polls: beside the start of the process itself, the wait is a fraction of a second. Best of three wakes."""
    waits_s = []
    for _ in range(3):
        eventually(lambda: not replicas("sleeper"), what="it sleeps")
        called = time.time()
        began, was_ready = sleeper.remote().result(timeout_s=20)
        answered = time.time()
        waits_s.append((began - called) + (answered - was_ready))

    assert min(waits_s) < 0.5, waits_s


def test_a_burst_starts_what_it_asks_for_at_once(sleeper):
    """20 calls at 2 a replica are 10 replicas: not one, to see later that it is not enough, and not twelve."""
    responses = [sleeper.remote(1.0) for _ in range(20)]
    began = {response.result(timeout_s=20)[0] for response in responses}

    assert len(began) <= 10
    assert max(after for _, after in steps("sleeper", "Sleeper")) == 10
    reason = api.decisions("sleeper")["sleeper.Sleeper"][-1].reason
    assert reason.endswith("10 replicas at 2 each"), reason


def test_after_the_calls_it_sleeps_again(sleeper):
    """Half a second after the last one, with the delay that this deployment has."""
    sleeper.remote().result(timeout_s=20)
    assert replicas("sleeper")

    eventually(lambda: not replicas("sleeper"), what="it sleeps")
    assert steps("sleeper", "Sleeper") == [(0, 1), (1, 0)]


def test_a_deploy_of_a_sleeping_application_lets_it_sleep_and_wake(sleeper):
    """The same code, run by a second web process: nothing starts. The next call starts one replica."""
    handle = serve.run(Sleeper.bind(), name="sleeper")
    assert not replicas("sleeper")

    assert handle.remote().result(timeout_s=20)


def test_a_sleeping_application_can_be_deleted(cluster):
    """Calls are refused then, and wake nobody."""
    handle = serve.run(Sleeper.bind(), name="gone")
    eventually(lambda: not replicas("gone"))
    serve.delete("gone")

    with pytest.raises(DeploymentUnavailableError):
        handle.remote().result(timeout_s=10)


def test_replicas_that_go_lose_and_repeat_nothing(cluster, tmp_path):
    """Six replicas become one while calls flow: each call is run exactly once, and answered."""
    ledger = tmp_path / "ledger"
    scaling = {"min_replicas": 1, "initial_replicas": 6, "max_replicas": 6, **SOON, "downscale_delay_s": 3}
    handle = serve.run(Clerk.options(autoscaling_config=scaling).bind(str(ledger)), name="clerk")
    tickets = iter(range(100_000))
    done: list[int] = []

    def customer() -> None:
        while replicas("clerk").total() > 1 or len(done) < 20:
            ticket = next(tickets)
            assert handle.remote(ticket).result(timeout_s=20) == ticket
            done.append(ticket)

    with ThreadPoolExecutor(2) as customers:
        for served in [customers.submit(customer) for _ in range(2)]:
            served.result(timeout=30)

    noted = Counter(int(line.split()[0]) for line in ledger.read_text().splitlines())
    assert noted == Counter(done)
    taken = steps("clerk", "Clerk")
    assert (taken[0][0], taken[-1][1]) == (6, 1)
    serve.delete("clerk")


def test_another_autoscaler_goes_on_with_what_the_last_one_decided(cluster):
    """The leader is killed under load: no replica is stopped because somebody new counts from one again."""
    scaling = {"min_replicas": 1, "max_replicas": 8, "look_back_period_s": 0.5}
    busy = Sleeper.options(autoscaling_config=scaling, graceful_shutdown_timeout_s=0.2)
    handle = serve.run(busy.bind(), name="busy")
    for _ in range(12):
        handle.remote(60.0)
    eventually(lambda: replicas("busy")["RUNNING"] >= 4, what="it grows")
    before = {replica.replica_id for replica in api.replicas() if replica.app == "busy"}

    cluster.kill(cluster.autoscalers[0])
    cluster.start_autoscaler()
    serve.run(Sleeper.bind(), name="another")  # returns when the new leader has looked at everything

    assert before <= {replica.replica_id for replica in api.replicas() if replica.app == "busy"}
