"""Several autoscalers: one leads. It is killed, paused, killed in the middle of a deploy; what runs goes on, once."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
import redis

import qserve as serve
from qserve.config import LEASE_S
from qserve.handle import DeploymentHandle
from qserve.wire.keys import ClusterKeys
from tests.acceptance.ledger import Clerk
from tests.fundamentals.apps import Gate
from tests.support.cluster import Cluster, eventually, is_replica

TAKEOVER_S = 2 * LEASE_S


class Autoscalers:
    """Who of a cluster's autoscalers leads, and what they write."""

    def __init__(self, cluster: Cluster, server: redis.Redis) -> None:
        self.cluster = cluster
        self._server = server
        self._keys = ClusterKeys(cluster.settings.namespace)

    def start(self, number: int) -> None:
        """So many more."""
        for _ in range(number):
            self.cluster.start_autoscaler()

    @property
    def holder(self) -> str:
        """What stands in the leader's key; empty when nobody leads."""
        raw = self._server.get(self._keys.leader)
        return raw.decode() if isinstance(raw, bytes) else ""

    @property
    def generation(self) -> object:
        """It moves with every change."""
        return self._server.get(self._keys.generation)

    def leading(self) -> subprocess.Popen[bytes]:
        """The process that leads."""
        eventually(lambda: self.holder, within_s=TAKEOVER_S)
        [process] = [each for each in self.cluster.autoscalers if f"-{each.pid}-" in self.holder]
        return process

    def assigned(self) -> dict[str, int]:
        """How many replicas each worker is told to run."""
        names = [name.decode() for name in self._server.scan_iter(self._keys.assignments("*"))]
        return {name: int(str(self._server.hlen(name))) for name in names}

    def commands_of(self, process: subprocess.Popen[bytes]) -> int:
        """How many commands a process has sent since it connected."""
        mine = [client for client in self._server.client_list() if f"-{process.pid}-" in client["name"]]
        return sum(int(client["tot-cmds"]) for client in mine)


@pytest.fixture
def autoscalers(cluster, server):
    """Two workers and three autoscalers."""
    controllers = Autoscalers(cluster, server)
    controllers.start(2)
    cluster.start_worker()
    eventually(lambda: len(serve.status().nodes) == 2)
    return controllers


@contextmanager
def at_most(autoscalers: Autoscalers, per_worker: int) -> Iterator[None]:
    """Look all the while how many replicas each worker hosts and is told to host: never more than that."""
    over: list[object] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            hosted = [
                sum(is_replica(child) for child in psutil.Process(worker.pid).children())
                for worker in autoscalers.cluster.workers
            ]
            told = autoscalers.assigned()
            if max(hosted) > per_worker or max(told.values(), default=0) > per_worker:
                over.append((hosted, told))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join()
    assert not over


def test_three_at_once_place_every_replica_once(autoscalers, tmp_path):
    """All of them see what is missing; only one may act on it, also while versions change and a leader dies."""
    with at_most(autoscalers, per_worker=1):
        for number in range(3):
            app = Clerk.options(num_replicas=2, max_replicas_per_node=1).bind(str(tmp_path / f"ledger{number}"))
            serve.run(app, timeout_s=40)
            if number == 0:
                autoscalers.cluster.kill(autoscalers.leading())
    assert len(autoscalers.cluster.replica_pids()) == 2
    assert sorted(autoscalers.assigned().values()) == [1, 1]


def test_a_standby_leads_within_two_leases_and_keeps_what_runs(autoscalers, tmp_path):
    """kill -9: nothing restarts because somebody else decides now."""
    handle = serve.run(Clerk.options(num_replicas=2).bind(str(tmp_path / "ledger")))
    before, old = set(autoscalers.cluster.replica_pids()), autoscalers.holder
    autoscalers.cluster.kill(autoscalers.leading())

    eventually(lambda: autoscalers.holder not in ("", old), within_s=TAKEOVER_S)
    assert int(autoscalers.holder.split(":")[0]) == int(old.split(":")[0]) + 1
    serve.run(Clerk.options(num_replicas=3).bind(str(tmp_path / "ledger")))
    assert before < set(autoscalers.cluster.replica_pids())
    assert handle.work.remote(1).result(timeout_s=5) == 1


def test_a_leader_that_was_paused_changes_nothing_when_it_goes_on(autoscalers, tmp_path):
    """A frozen host thaws and finishes its turn: what its successor has decided since stands."""
    serve.run(Clerk.options(num_replicas=2).bind(str(tmp_path / "ledger")))
    serve.run(Clerk.bind(str(tmp_path / "ledger")), name="other")
    paused, old = autoscalers.leading(), autoscalers.holder
    autoscalers.cluster.kill(paused, signal.SIGSTOP)
    eventually(lambda: autoscalers.holder not in ("", old), within_s=TAKEOVER_S)
    serve.delete("other")
    serve.run(Clerk.options(num_replicas=3).bind(str(tmp_path / "ledger")))
    eventually(lambda: sum(autoscalers.assigned().values()) == 3)

    pids, generation, holder = autoscalers.cluster.replica_pids(), autoscalers.generation, autoscalers.holder
    sent = autoscalers.commands_of(paused)
    autoscalers.cluster.kill(paused, signal.SIGCONT)
    eventually(lambda: autoscalers.commands_of(paused) >= sent + 2, what="it is back, and has looked who leads")
    assert autoscalers.generation == generation
    assert autoscalers.holder == holder
    assert autoscalers.cluster.replica_pids() == pids


def test_a_deploy_whose_leader_dies_is_finished_by_the_next(autoscalers):
    """Its replicas have begun to start: they are taken over as they are, and whoever waits for the deploy hears."""
    gate = serve.run(Gate.bind(), name="gate")

    @serve.deployment
    class Slow:
        async def __init__(self, gate: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # the replica awaits it
            await gate.wait.remote("slow")

        def __call__(self) -> str:
            return "there"

    with ThreadPoolExecutor() as pool:
        deploying = pool.submit(serve.run, Slow.options(num_replicas=2).bind(gate), name="slow")
        eventually(lambda: gate.waiting.remote("slow").result(timeout_s=5) == 2)
        before = set(autoscalers.cluster.replica_pids())
        autoscalers.cluster.kill(autoscalers.leading())
        gate.open.remote("slow")
        assert deploying.result(timeout=30).remote().result(timeout_s=5) == "there"
    assert set(autoscalers.cluster.replica_pids()) == before


def test_a_leader_that_leaves_in_order_is_followed_at_once(autoscalers):
    """A rolling restart of the autoscalers costs nobody six seconds."""
    leading, old = autoscalers.leading(), autoscalers.holder
    leading.terminate()
    assert leading.wait(10) == 0

    eventually(lambda: autoscalers.holder not in ("", old), within_s=LEASE_S / 2)
