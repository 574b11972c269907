"""Bad input: each slip has an error of its own that says what happened, why, and how to mend it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import qserve as serve
from qserve.client import portal
from qserve.config import Settings
from qserve.errors import (
    ApplicationNotFound,
    BrokerUnavailable,
    DeployFailed,
    DeploymentNotFound,
    DeploymentUnavailableError,
    DeployTimeout,
    MethodNotFound,
    PayloadTooLarge,
    SerializationError,
)
from qserve.handle import DeploymentHandle
from tests.support.cluster import ROOT, Cluster, cluster_in, eventually, namespace_on

MIB = 1024 * 1024


@serve.deployment(max_ongoing_requests=2)
class Echo:
    def __call__(self, value: Any = None) -> Any:
        return value

    def size(self, value: bytes) -> int:
        return len(value)

    def large(self, size_bytes: int) -> bytes:
        return bytes(size_bytes)


@serve.deployment
class NeedsWeights:
    def __init__(self) -> None:
        self.load()

    def load(self) -> None:
        raise FileNotFoundError("/models/weights.bin is missing")


@pytest.fixture(scope="module")
def settings(broker_url: str) -> Iterator[Settings]:
    """Signed settings in a namespace of the file's own."""
    with namespace_on(broker_url) as chosen:
        yield chosen


@pytest.fixture(scope="module")
def cluster(settings: Settings) -> Iterator[Cluster]:
    """A cluster for all tests of the file."""
    with cluster_in(settings) as running:
        yield running


@pytest.fixture
def echo(cluster):
    """A deployment that does nothing wrong."""
    return serve.run(Echo.bind(), name="echo")


@pytest.fixture
def elsewhere(settings):
    """Turn this process to a cluster that the test chooses; back to the file's afterwards."""
    yield lambda **changes: portal.use(replace(settings, **changes))
    portal.use(settings)


# Arguments


def test_an_argument_that_cannot_be_pickled_is_named_where_it_was_passed(echo):
    """The traceback points at the caller's own line, and the text at the argument."""
    with pytest.raises(SerializationError, match=r"argument number 2, a lock, cannot be pickled.*Pass plain data"):
        echo.remote(1, threading.Lock())
    with pytest.raises(SerializationError, match="argument 'value', a list, cannot be pickled"):
        echo.remote(value=[1, {"deep": threading.Lock()}])


def test_a_payload_over_the_limit_is_refused_with_its_size_and_the_limit(echo):
    """Redis must not be filled by one call; the mend is to pass an address."""
    with pytest.raises(
        PayloadTooLarge, match=r"'Echo.size' has 67,1\d\d,\d\d\d bytes; the limit is 67,108,864.*pass its address"
    ):
        echo.size.remote(bytes(64 * MIB))
    assert echo.size.remote(bytes(2 * MIB)).result(timeout_s=10) == 2 * MIB


def test_a_result_over_the_limit_is_an_error_of_its_call(echo):
    """The replica lives on; the caller hears what was too large."""
    with pytest.raises(PayloadTooLarge, match=r"The result of 'large' has 67,1\d\d,\d\d\d bytes"):
        echo.large.remote(64 * MIB).result(timeout_s=20)
    assert echo.remote(1).result(timeout_s=5) == 1


def test_an_unknown_method_lists_the_methods(echo):
    """And a wrong number of arguments is Python's own TypeError."""
    with pytest.raises(
        MethodNotFound, match=r"'nope' that does not exist. Available methods: \['__call__', 'large', 'size'\]"
    ):
        echo.nope.remote().result(timeout_s=5)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'value'"):
        echo.size.remote().result(timeout_s=5)


def test_unknown_names_list_those_there_are(echo, settings):
    """An application or a deployment that is not there is said to be so at once, also to a call."""
    there = rf"'eco' does not exist. Deployed in namespace '{settings.namespace}': \['echo'"
    with pytest.raises(ApplicationNotFound, match=there):
        serve.get_app_handle("eco")
    with pytest.raises(DeploymentNotFound, match=r"'Eco' does not exist in application 'echo'. It has: \['Echo'\]"):
        serve.get_deployment_handle("Eco", "echo")
    unknown: DeploymentHandle[Any] = DeploymentHandle("Eco", "echo")
    with pytest.raises(DeploymentUnavailableError, match="'Eco' of application 'echo' is not deployed"):
        unknown.remote().result(timeout_s=5)


# Deploys


def test_a_constructor_that_raises_gives_its_traceback_within_seconds(cluster):
    """The error that `serve.run` raises is the one that the replica had, with its lines; the status shows it too."""
    began = time.monotonic()
    with pytest.raises(
        DeployFailed, match=r"Deploying application weights failed: .*failed to start 3 times"
    ) as caught:
        serve.run(NeedsWeights.bind(), name="weights")

    assert time.monotonic() - began < 10
    for text in (str(caught.value), serve.status().applications["weights"].message):
        assert "FileNotFoundError: /models/weights.bin is missing" in text
        assert "in load" in text
    assert serve.status().applications["weights"].status == "DEPLOY_FAILED"
    assert isinstance(caught.value, RuntimeError), "what Ray Serve's users catch"


def test_without_a_worker_the_error_says_so(settings, elsewhere):
    """The first run of a cluster with a step forgotten."""
    elsewhere(namespace="no-worker")
    alone = Cluster(replace(settings, namespace="no-worker"))
    alone.start_autoscaler()
    try:
        with pytest.raises(
            DeployTimeout, match=r"not running after 3 s.*No worker has joined: start one with `qserve worker`"
        ):
            serve.run(Echo.bind(), timeout_s=3)
    finally:
        alone.stop()


def test_without_an_autoscaler_the_error_says_so(elsewhere):
    """The other step that may be forgotten."""
    elsewhere(namespace="no-autoscaler")

    with pytest.raises(DeployTimeout, match="No autoscaler is running: start one with `qserve autoscaler`"):
        serve.run(Echo.bind(), timeout_s=0.5)


# A server that is not there

NOBODY = "redis://someone:hunter2@127.0.0.1:1/0"
CLIENT = """
import qserve as serve
from qserve.handle import DeploymentHandle
DeploymentHandle("Echo", "echo").remote(1).result()
"""


@pytest.fixture(scope="module")
def without_redis(settings) -> dict[str, subprocess.CompletedProcess[str]]:
    """What each kind of process says and how it ends when there is no server; all started together."""
    env = replace(settings, redis_url=NOBODY).child_env() | {"PYTHONPATH": str(ROOT)}
    commands = {
        "worker": ["-m", "qserve.node"],
        "autoscaler": ["-m", "qserve.controller"],
        "client": ["-c", CLIENT],
        "deploy": ["-c", "import qserve as serve; serve.status()"],
    }
    processes = {
        kind: subprocess.Popen([sys.executable, *command], env=env, stderr=subprocess.PIPE, text=True)
        for kind, command in commands.items()
    }
    ended = {}
    for kind, process in processes.items():
        _, err = process.communicate(timeout=30)
        ended[kind] = subprocess.CompletedProcess(commands[kind], process.returncode, "", err)
    return ended


@pytest.mark.parametrize("kind", ["worker", "autoscaler", "client", "deploy"])
def test_redis_that_cannot_be_reached_is_named_with_its_password_masked(without_redis, kind):
    """The log line that an operator reads first: which server, why not, and what to do; and no secret in it."""
    last_line = without_redis[kind].stderr.strip().splitlines()[-1]

    assert "Redis at redis://someone:***@127.0.0.1:1/0 cannot be reached: " in last_line
    assert "refused" in last_line
    assert "point QSERVE_REDIS_URL at the one that runs" in last_line
    assert "hunter2" not in without_redis[kind].stderr
    assert without_redis[kind].returncode != 0


def test_a_call_without_redis_fails_when_it_is_fetched(elsewhere):
    """`.remote()` never raises for the weather; the response does, within seconds."""
    elsewhere(redis_url=NOBODY)
    response = DeploymentHandle("Echo", "echo").remote(1)

    with pytest.raises(BrokerUnavailable, match=r"redis://someone:\*\*\*@127.0.0.1:1/0 cannot be reached"):
        response.result(timeout_s=10)


def test_a_network_without_a_secret_is_refused(elsewhere):
    """Whoever can write to an unsigned queue runs code on the replicas: that must be chosen, not forgotten."""
    elsewhere(redis_url="redis://cache.example.com:6379/0", secrets=())

    with pytest.raises(serve.errors.SecretRequired, match=r"QSERVE_SECRET_KEY is not set.*qserve secret new"):
        serve.status()


def test_the_cluster_is_well_after_all_this(echo):
    """No slip of one caller is felt by another."""
    eventually(lambda: echo.remote("well").result(timeout_s=5) == "well")
