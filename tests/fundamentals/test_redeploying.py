"""Deploying again: what is the same goes on, what has changed is replaced, new before old."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import qserve as serve
from qserve.errors import DeployFailed
from qserve.handle import DeploymentHandle
from tests.fundamentals.apps import Gate
from tests.support.cluster import eventually


@serve.deployment
class Pid:
    def __init__(self, label: str = "") -> None:
        self._label = label

    def __call__(self) -> int:
        return os.getpid()

    def label(self) -> str:
        return self._label


@serve.deployment
class Front:
    def __init__(self, behind: DeploymentHandle[Any], label: str) -> None:
        self._behind = behind
        self._label = label

    async def __call__(self) -> tuple[str, int, int]:
        return self._label, os.getpid(), await self._behind.remote()


def version(answer: str) -> serve.Deployment:
    """A deployment as a script or a notebook has it after an edit: its class travels by value."""

    class Edited:
        def __call__(self) -> str:
            return answer

        def pid(self) -> int:
            return os.getpid()

    return serve.deployment(Edited)


@pytest.fixture
def gate(cluster):
    """What constructors of this file wait at."""
    return serve.run(Gate.bind(), name="gate")


def pid_of(handle: DeploymentHandle[Any]) -> int:
    """The process that answers."""
    return int(handle.remote().result(timeout_s=5))


def test_the_same_code_restarts_nothing(cluster):
    """A script that is run twice, a web server whose ten processes all deploy: the model stays loaded."""
    before = pid_of(serve.run(Pid.bind(), name="same"))

    assert pid_of(serve.run(Pid.bind(), name="same")) == before


def test_a_class_of_a_script_that_did_not_change_restarts_nothing(cluster):
    """Also a class that travels by value is known again by what it says."""
    handle = serve.run(version("one").bind(), name="script")
    before = handle.pid.remote().result(timeout_s=5)
    serve.run(version("one").bind(), name="script")

    assert handle.pid.remote().result(timeout_s=5) == before


def test_changed_code_is_what_answers_when_run_returns(cluster):
    """Edit, run, see it: no old replica answers any more."""
    handle = serve.run(version("one").bind(), name="edited")
    assert handle.remote().result(timeout_s=5) == "one"

    serve.run(version("two").bind(), name="edited")
    assert {handle.remote().result(timeout_s=5) for _ in range(20)} == {"two"}


def test_changed_arguments_restart(cluster):
    """The constructor's arguments are part of the version."""
    first = serve.run(Pid.bind("a"), name="argued")
    before = pid_of(first)
    second = serve.run(Pid.bind("b"), name="argued")

    assert second.label.remote().result(timeout_s=5) == "b"
    assert pid_of(second) != before


def test_only_the_deployment_that_changed_restarts(cluster):
    """A new gateway must not reload the model behind it."""
    behind = Pid.bind()
    _, front, back = serve.run(Front.bind(behind, "v1"), name="partly").remote().result(timeout_s=5)
    label, new_front, new_back = serve.run(Front.bind(behind, "v2"), name="partly").remote().result(timeout_s=5)

    assert label == "v2"
    assert new_back == back
    assert new_front != front


def test_other_applications_are_left_alone(cluster):
    """Teams share a cluster, not a release."""
    other = serve.run(Pid.bind(), name="other")
    before = pid_of(other)
    serve.run(version("one").bind(), name="mine")
    serve.run(version("two").bind(), name="mine")
    serve.delete("mine")

    assert pid_of(other) == before


def test_the_new_version_is_up_before_the_old_one_goes(gate):
    """Also with one replica there is no gap: callers meet the old version until the new one is ready."""
    handle = serve.run(Pid.options(name="Slow").bind("old"), name="rolling")

    @serve.deployment(name="Slow")
    class Slow:
        async def __init__(self, gate: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # the replica awaits it
            await gate.wait.remote("rolling")

        def label(self) -> str:
            return "new"

    with ThreadPoolExecutor() as pool:
        deploying = pool.submit(lambda: serve.run(Slow.bind(gate), name="rolling"))
        eventually(lambda: gate.waiting.remote("rolling").result(timeout_s=5) == 1)
        assert [handle.label.remote().result(timeout_s=5) for _ in range(20)] == ["old"] * 20
        assert serve.status().applications["rolling"].status == "DEPLOYING"
        gate.open.remote("rolling")
        deploying.result(timeout=20)
    assert handle.label.remote().result(timeout_s=5) == "new"


async def test_no_call_fails_while_versions_change(cluster):
    """A release in the middle of the day: every call is answered, by the old code or by the new."""
    handle = serve.run(version("0").bind(), name="busy")
    stop = threading.Event()
    answers: list[str] = []

    async def keep_calling():
        while not stop.is_set():
            answers.extend(await asyncio.gather(*(handle.remote() for _ in range(10))))

    calling = asyncio.ensure_future(keep_calling())
    for number in range(1, 4):
        await asyncio.to_thread(serve.run, version(str(number)).bind(), name="busy")
        assert await handle.remote() == str(number)
    stop.set()
    await calling
    assert set(answers) == {"0", "1", "2", "3"}


def test_a_call_that_runs_when_its_version_is_replaced_is_finished(gate):
    """The old replica drains: what it has begun, it ends."""

    @serve.deployment(name="Drains")
    class Drains:
        def __init__(self, gate: DeploymentHandle[Any], label: str) -> None:
            self._gate, self._label = gate, label

        async def work(self) -> str:
            await self._gate.wait.remote("drain")
            return self._label

    handle = serve.run(Drains.bind(gate, "old"), name="drains")
    response = handle.work.remote()
    eventually(lambda: gate.waiting.remote("drain").result(timeout_s=5) == 1)

    serve.run(Drains.bind(gate, "new"), name="drains")
    gate.open.remote("drain")
    assert response.result(timeout_s=5) == "old"
    assert handle.work.remote().result(timeout_s=5) == "new"


def test_new_code_that_cannot_start_leaves_the_old_version_serving(cluster):
    """A broken release is an error of the release, not an outage."""
    handle = serve.run(Pid.options(name="Breaks").bind(), name="breaks")
    before = pid_of(handle)

    @serve.deployment(name="Breaks")
    class Breaks:
        def __init__(self) -> None:
            raise ZeroDivisionError("wrong weights")

    with pytest.raises(DeployFailed, match="wrong weights"):
        serve.run(Breaks.bind(), name="breaks")
    assert serve.status().applications["breaks"].status == "DEPLOY_FAILED"
    assert pid_of(handle) == before

    serve.run(Pid.options(name="Breaks").bind(), name="breaks")
    assert serve.status().applications["breaks"].status == "RUNNING"
    assert pid_of(handle) == before


def test_a_deployment_that_is_left_out_goes(cluster):
    """The application is what the last `serve.run` said, no more."""
    serve.run(Front.bind(Pid.bind(), "with"), name="shrinks")
    serve.run(Pid.bind(), name="shrinks")

    eventually(lambda: set(serve.status().applications["shrinks"].deployments) == {"Pid"})


def test_more_and_fewer_replicas_do_not_restart_those_that_stay(cluster):
    """The number of replicas is no part of the version."""
    before = pid_of(serve.run(Pid.bind(), name="scaled"))
    handle = serve.run(Pid.options(num_replicas=3).bind(), name="scaled")
    eventually(lambda: len({pid_of(handle) for _ in range(10)}) > 1)
    serve.run(Pid.bind(), name="scaled")

    eventually(lambda: serve.status().applications["scaled"].deployments["Pid"].replica_states == {"RUNNING": 1})
    assert before in cluster.replica_pids() or pid_of(handle) > 0


def test_force_restarts_the_same_code(cluster):
    """Somebody who wants a restart, after a leak or when a file that the class read has changed, gets one."""
    before = pid_of(serve.run(Pid.bind(), name="forced"))

    assert pid_of(serve.run(Pid.bind(), name="forced", force=True)) != before
