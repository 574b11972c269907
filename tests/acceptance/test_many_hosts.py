"""Several workers, several clients: one process deploys, others call, each knowing only the server and the secret."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import psutil
import pytest

import qserve as serve
from tests.acceptance.ledger import Clerk, Ledger
from tests.support.cluster import ROOT, eventually, is_replica


@pytest.fixture
def two_workers(cluster):
    """A cluster of two workers, as on two hosts."""
    cluster.start_worker()
    eventually(lambda: len(serve.status().nodes) == 2)
    return cluster


@pytest.fixture
def elsewhere(settings):
    """Run a script in a process of its own, with nothing but the environment; what it prints."""
    env = settings.child_env() | {"PYTHONPATH": str(ROOT)}

    def run(code: str) -> str:
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


DEPLOY = """
import qserve as serve

@serve.deployment(num_replicas=2)
class Greeter:
    def __call__(self, name):
        return f"hello {name}"

serve.run(Greeter.bind(), name="greeter")
"""
CALL = """
import qserve as serve
print(serve.get_app_handle("greeter").remote("you").result(timeout_s=10))
"""


def replicas_by_worker(cluster) -> list[int]:
    """How many replicas each worker hosts."""
    return [
        sum(is_replica(child) for child in psutil.Process(worker.pid).children())
        for worker in cluster.workers
        if worker.poll() is None
    ]


def test_replicas_are_spread_over_the_workers(two_workers, tmp_path):
    """One host may fail without taking a whole deployment along."""
    handle = serve.run(Clerk.options(num_replicas=4).bind(str(tmp_path / "ledger")))

    assert replicas_by_worker(two_workers) == [2, 2]
    pids = {response.result(timeout_s=10) for response in [handle.pid.remote() for _ in range(200)]}
    assert pids <= set(two_workers.replica_pids())
    assert len(pids) > 1


def test_at_most_so_many_replicas_per_node(two_workers, tmp_path):
    """`max_replicas_per_node` is for models that fill a host; what does not fit is said, and waits."""
    app = Clerk.options(num_replicas=3, max_replicas_per_node=1).bind(str(tmp_path / "ledger"))

    with pytest.raises(serve.errors.DeployTimeout, match="max_replicas_per_node=1"):
        serve.run(app, timeout_s=3)
    assert replicas_by_worker(two_workers) == [1, 1]
    two_workers.start_worker()
    eventually(lambda: serve.status().applications["default"].status == "RUNNING")
    assert replicas_by_worker(two_workers) == [1, 1, 1]


def test_one_process_deploys_and_another_calls(two_workers, elsewhere):
    """The deploy script has ended long since; the web servers know the application's name."""
    elsewhere(DEPLOY)

    assert elsewhere(CALL) == "hello you"
    assert serve.get_app_handle("greeter").remote("me").result(timeout_s=10) == "hello me"
    assert serve.status().applications["greeter"].deployments["Greeter"].replica_states == {"RUNNING": 2}


def test_another_process_changes_and_deletes_it(two_workers, elsewhere):
    """Applications belong to the cluster, not to the process that brought them."""
    elsewhere(DEPLOY)
    handle = serve.get_app_handle("greeter")
    elsewhere(DEPLOY.replace("hello", "good day,"))
    assert handle.remote("you").result(timeout_s=10) == "good day, you"

    elsewhere("import qserve as serve; serve.delete('greeter')")
    with pytest.raises(serve.errors.DeploymentUnavailableError):
        handle.remote("you").result(timeout_s=5)
    assert replicas_by_worker(two_workers) == [0, 0]


def test_the_same_script_again_restarts_nothing(two_workers, elsewhere):
    """A class of `__main__` is known again in another process, by what it says: ten web servers may all deploy."""
    elsewhere(DEPLOY)
    before = set(two_workers.replica_pids())
    elsewhere(DEPLOY)

    assert set(two_workers.replica_pids()) == before


def test_a_worker_that_joins_later_takes_what_had_no_place(cluster, tmp_path):
    """Order of starting hosts is free."""
    first = cluster.workers[0]
    eventually(lambda: len(serve.status().nodes) == 1)
    first.terminate()
    assert first.wait(15) == 0
    with pytest.raises(serve.errors.DeployTimeout, match="No worker has joined"):
        serve.run(Clerk.bind(str(tmp_path / "ledger")), timeout_s=1)

    cluster.start_worker()
    handle = serve.get_app_handle("default")
    assert handle.work.remote(1).result(timeout_s=15) == 1


def test_calls_made_while_no_worker_is_there_wait_for_one(two_workers, tmp_path):
    """All hosts restart at once; the queue holds what the web tier goes on submitting."""
    ledger = Ledger(tmp_path / "ledger")
    handle = serve.run(Clerk.bind(str(ledger.path)))
    for worker in two_workers.workers:
        worker.terminate()
    for worker in two_workers.workers:
        assert worker.wait(15) == 0

    responses = [handle.work.remote(ticket) for ticket in range(50)]
    assert not any(response.done() for response in responses)
    two_workers.start_worker()
    assert serve.get(responses, timeout_s=15) == list(range(50))
    assert set(ledger.starts().values()) == {1}
