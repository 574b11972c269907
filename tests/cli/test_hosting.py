"""`qserve worker` and `qserve autoscaler`: they join, and leave when asked."""

from __future__ import annotations

import signal

import pytest

import qserve as serve
from qserve.cli.hosting import _size_bytes
from tests.support.cluster import eventually


@pytest.fixture
def worker(start, settings):
    """A worker with everything that can be said about it."""
    offer = ("--num-cpus", "1.5", "--resource", "tickets=2", "--resource", "gpus=0.5", "--label", "zone=eu")
    amounts = ("--num-gpus", "3", "--memory", "512M")
    command = start("worker", *offer, *amounts, "--deployments", "a,b.C", settings=settings)
    eventually(lambda: serve.status().nodes, what="the worker has joined")
    yield command
    command.close()


def test_a_worker_offers_what_its_options_say(worker):
    """Placement rests on them."""
    (node,) = serve.status().nodes
    assert node.resources["num_cpus"] == 1.5
    assert (node.resources["tickets"], node.resources["gpus"]) == (2.0, 0.5)
    assert (node.resources["num_gpus"], node.resources["memory"]) == (3.0, 512 * 1024 * 1024)
    assert node.labels == {"zone": "eu"}
    assert node.deployments == ("a", "b.C")


def test_term_takes_a_worker_off_the_cluster(worker):
    """A rolling upgrade of hosts: 0 tells the supervisor that nothing was lost."""
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0
    assert serve.status().nodes == ()


def test_an_autoscaler_leads_and_says_so(start, settings):
    """Its log is where an operator looks first; without options it is at INFO."""
    command = start("autoscaler", settings=settings, QSERVE_LOG_LEVEL="")
    eventually(lambda: "Leading (term 1)" in command.err, what="it leads")
    command.signal(signal.SIGTERM)
    assert command.ended() == 0


def test_a_worker_without_a_cluster_says_what_to_set(invoke):
    """78 is what supervisors take as: do not start it again."""
    result = invoke("worker", env={"QSERVE_REDIS_URL": None})
    assert result.exit_code == 78
    assert "set QSERVE_REDIS_URL" in result.stderr


def test_a_worker_refuses_an_unsigned_network(invoke):
    """Pickles from whoever can write to that Redis would be code from whoever can."""
    result = invoke("--redis-url", "redis://10.255.255.1:6379/0", "worker", env={"QSERVE_SECRET_KEY": None})
    assert result.exit_code == 78
    assert "`qserve secret new`" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--resource", "tickets"),
        ("--resource", "tickets=many"),
        ("--label", "=eu"),
        ("--num-cpus", "-1"),
        ("--num-gpus", "0.5"),
        ("--memory", "8 elephants"),
    ],
)
def test_a_wrong_offer_is_wrong_usage(invoke, options):
    """A worker that starts with less than was meant is found days later."""
    assert invoke("worker", *options).exit_code == 2


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4096", 4096), ("8G", 8 * 1024**3), ("8GiB", 8 * 1024**3), ("1.5k", 1536), ("2 TB", 2 * 1024**4)],
)
def test_memory_is_bytes_or_has_a_letter(text, size_bytes):
    """As people write it elsewhere."""
    assert _size_bytes(text) == size_bytes
