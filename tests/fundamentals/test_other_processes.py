"""A response outlives its process: its `request_id` goes to a browser or a database, and any process fetches it."""

from __future__ import annotations

import asyncio
import pickle
import secrets
import subprocess
import sys
import time
from typing import Any

import pytest

import qserve as serve
from qserve.errors import CallLost
from qserve.handle import DeploymentHandle, DeploymentResponse
from tests.fundamentals.apps import Gate
from tests.support.cluster import ROOT, eventually


@serve.deployment(max_ongoing_requests=1)
class Clerk:
    """Takes one call at a time, so that the others wait."""

    def __init__(self, gate: DeploymentHandle[Any]) -> None:
        self._gate = gate

    async def file(self, gate: str, value: Any) -> Any:
        return await self._gate.wait.remote(gate, value)

    async def refuse(self) -> None:
        raise LookupError("no such file")

    async def fetch(self, request_id: str) -> Any:
        return await serve.get_response(request_id)

    async def submit(self, gate: str, value: Any) -> str:
        return self._gate.wait.remote(gate, value).request_id

    async def fetch_response(self, response: list[DeploymentResponse[Any]]) -> Any:
        return response[0]


@pytest.fixture(scope="module")
def gate(cluster):
    """A deployment whose calls wait until their gate is opened."""
    return serve.run(Gate.bind(), name="gate")


@pytest.fixture(scope="module")
def clerk(gate):
    """A deployment of one slot behind the gate."""
    return serve.run(Clerk.bind(Gate.bind()), name="clerk")


@pytest.fixture(scope="module")
def inner_gate(clerk):
    """The gate that the clerk holds."""
    return serve.get_deployment_handle("Gate", "clerk")


@pytest.fixture
def name():
    """A gate of the test's own."""
    return secrets.token_hex(4)


def in_another_process(settings, code, *arguments):
    """Run a line of Python in a process that knows the cluster by its environment; what it prints."""
    env = settings.child_env() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, qserve as serve; {code}", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout.strip()


def test_any_process_fetches_a_result_by_its_request_id(gate, name, settings):
    """A web server that restarts, or a second one behind the same balancer, answers the browser that asks again."""
    request_id = gate.wait.remote(name, 42).request_id
    gate.open.remote(name)

    fetch = "print(serve.get_response(sys.argv[1]).result(timeout_s=10))"
    assert in_another_process(settings, fetch, request_id) == "42"
    assert in_another_process(settings, fetch, request_id) == "42", "and again: reading it does not use it up"


def test_a_result_that_was_fetched_here_can_still_be_fetched_elsewhere(gate, name, settings):
    """The id may be asked for after the value has been read."""
    response = gate.wait.remote(name, 42)
    gate.open.remote(name)
    assert response.result(timeout_s=5) == 42

    fetch = "print(serve.get_response(sys.argv[1]).result(timeout_s=10))"
    assert in_another_process(settings, fetch, response.request_id) == "42"


def test_a_call_may_be_submitted_by_a_process_that_ends(clerk, inner_gate, name, settings):
    """A request handler submits, stores the id, and is gone; the work goes on."""
    submit = "print(serve.get_deployment_handle('Gate', 'clerk').wait.remote(sys.argv[1], 42).request_id)"
    request_id = in_another_process(settings, submit, name)

    inner_gate.open.remote(name)
    assert serve.get_response(request_id).result(timeout_s=5) == 42


def test_a_response_made_inside_a_replica_is_fetched_outside(clerk, inner_gate, name):
    """A deployment starts long work and hands its id to the caller, who comes back for it."""
    request_id = clerk.submit.remote(name, 42).result(timeout_s=5)

    inner_gate.open.remote(name)
    assert serve.get_response(request_id).result(timeout_s=5) == 42


async def test_waiting_in_another_place_is_told_when_the_answer_comes(gate, clerk, name):
    """The second reader does not poll: it asks to be told, and is."""
    request_id = gate.wait.remote(name, 42).request_id
    fetched = clerk.fetch.remote(request_id)
    here = serve.get_response(request_id)

    await gate.open.remote(name)
    assert list(await asyncio.gather(fetched, here)) == [42, 42]


def test_an_error_travels_by_id_as_well(clerk):
    """Whoever fetches the call gets what it came to, good or bad."""
    request_id = clerk.refuse.remote().request_id

    with pytest.raises(LookupError, match="no such file"):
        serve.get_response(request_id).result(timeout_s=5)


def test_status_follows_the_call_from_the_queue_to_its_end(clerk, inner_gate, name):
    """A page shows what became of a job: waiting, running, done."""
    running, waiting = clerk.file.remote(name, 1), clerk.file.remote(name, 2)
    eventually(lambda: inner_gate.waiting.remote(name).result(timeout_s=5) == 1)

    assert running.status() == "RUNNING"
    assert waiting.status() == "QUEUED"
    inner_gate.open.remote(name)
    assert waiting.result(timeout_s=5) == 2
    assert (running.status(), waiting.status()) == ("DONE", "DONE")


def test_status_is_the_same_for_whoever_asks(clerk, inner_gate, name):
    """By its id alone, a process that never saw the call tells how it stands."""
    running, waiting = clerk.file.remote(name, 1), clerk.file.remote(name, 2)
    eventually(lambda: inner_gate.waiting.remote(name).result(timeout_s=5) == 1)

    assert serve.get_response(running.request_id).status() == "RUNNING"
    assert serve.get_response(waiting.request_id).status() == "QUEUED"
    inner_gate.open.remote(name)
    waiting.result(timeout_s=5)
    assert serve.get_response(running.request_id).status() == "DONE"


def test_the_status_of_a_call_that_raised_is_failed(clerk):
    """An exception is an end, and a different one."""
    response = clerk.refuse.remote()

    eventually(lambda: response.status() == "FAILED")
    assert serve.get_response(response.request_id).status() == "FAILED"


async def test_status_async_asks_without_blocking_the_loop(gate, name):
    """The same question from an endpoint."""
    response = gate.wait.remote(name, 42)

    while await response.status_async() != "RUNNING":
        pass
    await gate.open.remote(name)
    assert await response == 42
    assert await response.status_async() == "DONE"


def test_a_call_that_nobody_knows_is_unknown_and_says_so(gate):
    """An id that is too old, or of another cluster, must not make its reader wait for ever."""
    app, deployment, _call = gate.waiting.remote("x").request_id.split(".")
    stranger = serve.get_response(f"{app}.{deployment}.{secrets.token_hex(16)}")

    assert stranger.status() == "UNKNOWN"
    began = time.monotonic()
    with pytest.raises(CallLost, match="Redis does not know the call"):
        stranger.result(timeout_s=10)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("text", ["", "nonsense", "a.b.c", "default.Gate.0193"])
def test_what_is_no_request_id_is_refused_at_once(cluster, text):
    """A typing error in a URL is the visitor's, and deserves its own answer."""
    with pytest.raises(ValueError, match="is not a request id"):
        serve.get_response(text)


def test_a_response_pickles_to_a_reference(gate, name):
    """It can be put into a cache, a session or another queue as it is."""
    response = gate.wait.remote(name, 42)
    data = pickle.dumps(response)

    gate.open.remote(name)
    assert pickle.loads(data).result(timeout_s=5) == 42
    assert len(data) < 300


def test_a_pickled_response_is_fetched_by_another_process(gate, name, settings):
    """The reference is complete: the cluster is known from the environment, the rest is in it."""
    response = gate.wait.remote(name, 42)
    gate.open.remote(name)

    load = "import pickle; print(pickle.loads(bytes.fromhex(sys.argv[1])).result(timeout_s=10))"
    assert in_another_process(settings, load, pickle.dumps(response).hex()) == "42"


async def test_a_response_of_another_process_can_be_an_argument(gate, clerk, name):
    """What was fetched by its id is a response like any other."""
    request_id = gate.wait.remote(name, 42).request_id
    passed_on = clerk.fetch_response.remote([serve.get_response(request_id)])

    await gate.open.remote(name)
    assert await passed_on == 42
