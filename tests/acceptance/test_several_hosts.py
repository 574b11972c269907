"""Several hosts as network namespaces: the server, two workers, two autoscalers, a web backend; with cables to pull."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qserve.config import LEASE_S, Settings
from qserve.store.embedded import find_binary
from tests.acceptance.ledger import Ledger
from tests.support.cluster import ROOT, SECRET, eventually
from tests.support.hosts import Host, Network, why_not

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(bool(why_not()), reason=why_not())]

# As the console script does, wherever it is installed.
QSERVE = (sys.executable, "-c", "from qserve.cli import main; main()")
REPLICAS = 4
CALLS_PER_SECOND = 50
CUT_S = 30


class Cluster(NamedTuple):
    """The hosts, and the backend that submits all along."""

    network: Network
    ledger: Ledger
    backend: subprocess.Popen[str]

    def ask(self, question: str) -> dict[str, Any]:
        """What the backend says."""
        assert self.backend.stdin is not None
        assert self.backend.stdout is not None
        self.backend.stdin.write(f"{question}\n")
        self.backend.stdin.flush()
        answer: dict[str, Any] = json.loads(self.backend.stdout.readline())
        return answer

    def finish(self) -> dict[str, Any]:
        """Submit no more, wait for all answers, and count."""
        return self.ask("stop")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Everything runs, four replicas on two workers, and calls flow."""
    with Network("server", "worker-a", "worker-b", "pilot-a", "pilot-b", "web") as network:
        server = network["server"]
        serve_redis(server, tmp_path)
        settings = Settings(
            redis_url=f"redis://{server.address}:6379/0", namespace=f"t{secrets.token_hex(4)}", secrets=(SECRET,)
        )
        env = settings.child_env() | {"PYTHONPATH": str(ROOT)}
        for name in ("pilot-a", "pilot-b"):
            network[name].start(*QSERVE, "autoscaler", env=env, talks=False)
        for name in ("worker-a", "worker-b"):
            network[name].start(*QSERVE, "worker", "--num-cpus", "8", env=env, talks=False)
        ledger = Ledger(tmp_path / "ledger")
        arguments = (str(ledger.path), str(REPLICAS), str(CALLS_PER_SECOND))
        backend = network["web"].start(
            sys.executable, "-m", "tests.acceptance.backend", *arguments, env=env, talks=True
        )
        assert backend.stdout is not None
        assert json.loads(backend.stdout.readline()) == {"running": True}
        yield Cluster(network, ledger, backend)


def serve_redis(host: Host, folder: Path) -> None:
    """A server on the host's address."""
    options = ("--bind", host.address, "--protected-mode", "no", "--save", "", "--appendonly", "yes")
    process = host.start(find_binary(Settings()), *options, "--dir", str(folder), env=dict(os.environ), talks=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "Ready to accept connections" in line:
            return
    pytest.fail("the server did not start")


def test_hosts_that_are_cut_off_lose_no_call_and_take_part_again(cluster: Cluster):
    """A switch fails, with a worker and the leading autoscaler on it, for half a minute: the other autoscaler leads,
    the calls run elsewhere, late answers count for nothing, and when it is back the load is shared again.
    """
    eventually(lambda: sorted(cluster.ask("where").values()) == [2, 2], what="two replicas on each worker")
    eventually(lambda: cluster.ask("counts")["answered"] > 2 * CALLS_PER_SECOND)
    leader = cluster.ask("leader")["holder"]
    lost = ["worker-a", next(name for name in ("pilot-a", "pilot-b") if leads(cluster.network[name], leader))]

    begun = cluster.ask("counts")["submitted"]
    for name in lost:
        cluster.network[name].cut()
    next_term = f"{int(leader.partition(':')[0]) + 1}:"
    eventually(
        lambda: cluster.ask("leader")["holder"].startswith(next_term), within_s=2 * LEASE_S, what="another leads"
    )
    successor = cluster.ask("leader")["holder"]
    eventually(
        lambda: list(cluster.ask("where").values()) == [REPLICAS],
        within_s=2 * LEASE_S + 10,
        what="all replicas on the worker that is left",
    )
    answered = cluster.ask("counts")["answered"]
    eventually(lambda: cluster.ask("counts")["answered"] > answered + CALLS_PER_SECOND, within_s=CUT_S)
    # At most so many a second: the cut lasts half a minute or longer.
    eventually(lambda: cluster.ask("counts")["submitted"] >= begun + CUT_S * CALLS_PER_SECOND, within_s=2 * CUT_S)
    for name in lost:
        cluster.network[name].heal()

    eventually(
        lambda: sorted(cluster.ask("where").values()) == [2, 2], within_s=40, what="two replicas on each worker again"
    )
    assert cluster.ask("leader")["holder"] == successor
    check_books(cluster)


def leads(host: Host, holder: str) -> bool:
    """Whether the leader's process is this host's."""
    return any(f"-{process.pid}-" in holder for process in host.processes)


def check_books(cluster: Cluster) -> None:
    """Every call was answered, once, and had been run to its end."""
    counts = cluster.finish()
    assert counts["errors"] == []
    assert counts["answered"] == counts["submitted"]
    assert counts["told"] == counts["submitted"]
    assert counts["twice"] == counts["told twice"] == []
    assert set(cluster.ledger.ends()) == set(range(counts["submitted"]))
