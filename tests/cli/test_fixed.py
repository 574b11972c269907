"""`qserve worker MODULE:APP`: a cluster of such workers and no autoscaler, from the first start to `qserve delete`."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

import qserve as serve
from qserve import api
from qserve.client import portal
from qserve.config import Settings
from qserve.errors import DeploymentUnavailableError
from qserve.spec import ApplicationStatus
from tests.cli.conftest import Command
from tests.support.cluster import Cluster, eventually

MODULE = """
import os, time
import qserve as serve

@serve.deployment(graceful_shutdown_timeout_s=10)
class Greeter:
    def say_hi(self, name):
        return f"hi {name}"
    def pid(self):
        return os.getpid()
    def hold(self, seconds, path):
        open(path, "a").write("x")
        time.sleep(seconds)
        return os.getpid()

@serve.deployment
class Caller:
    def __init__(self, greeter):
        self._greeter = greeter
    async def __call__(self, name):
        return await self._greeter.say_hi.remote(name)

@serve.deployment
class Broken:
    def __init__(self):
        raise RuntimeError("there is no model file")

app = Caller.bind(Greeter.bind())
broken = Broken.bind()
"""
Work = Callable[..., Command]


@pytest.fixture
def alone(settings: Settings) -> Iterator[Settings]:
    """A namespace of the test's own, that no autoscaler serves."""
    chosen = replace(settings, namespace=f"t{secrets.token_hex(4)}")
    portal.use(chosen)
    yield chosen
    portal.use(settings)


@pytest.fixture
def work(start, folder, alone) -> Iterator[Work]:
    """`work("--replicas", "Greeter=2")` is one more worker of the application; all end with the test."""
    (folder / "fixed.py").write_text(MODULE)
    workers: list[Command] = []

    def worker(*arguments: str, app: str = "fixed:app") -> Command:
        workers.append(start("worker", app, *arguments, settings=alone, QSERVE_LOG_LEVEL="INFO"))
        return workers[-1]

    yield worker
    for each in workers:
        each.close()


def test_workers_add_up_and_what_is_submitted_without_one_waits_for_the_next(work, invoke, alone):
    """KEDA or an HPA scales them from zero and back; nobody who calls should notice more than a wait."""
    first, second = work("--replicas", "Greeter=2", "--replicas", "Caller=1"), work("--replicas", "Greeter=1")
    greeter = runs("Greeter", 3)
    assert invoke("call", "default.Caller", '["Ada"]', env=alone.child_env()).stdout == '"hi Ada"\n'
    assert serve.status("default").applications["default"].status is ApplicationStatus.RUNNING

    for worker in (first, second):
        worker.signal(signal.SIGTERM)
        assert worker.ended() == 0
    assert serve.status().nodes == ()
    response = greeter.say_hi.remote("who waits")
    shown = invoke("status", env=alone.child_env())
    assert "No worker hosts it: `qserve worker MODULE:APP --replicas Greeter=1`" in shown.stdout

    work("--replicas", "Greeter=1")
    assert response.result(timeout_s=20) == "hi who waits"


def test_delete_ends_the_workers_and_answers_everybody(work, invoke, alone, tmp_path):
    """Without an autoscaler nobody else would: the running call finishes, the waiting one hears that nobody comes."""
    worker = work("--replicas", "Greeter=1")
    greeter = runs("Greeter", 1)
    runs_now = greeter.hold.remote(2, str(tmp_path / "began"))
    eventually((tmp_path / "began").exists, what="it runs")
    waits = serve.get_deployment_handle("Caller", "default").remote("nobody hosts it")

    result = invoke("delete", "default", env=alone.child_env())

    assert (result.exit_code, result.stdout) == (0, "Deleted: default.\n")
    assert isinstance(runs_now.result(timeout_s=1), int)
    with pytest.raises(DeploymentUnavailableError, match="was deleted before the call ran"):
        waits.result(timeout_s=1)
    assert worker.ended() == 0
    assert "was deleted: this worker leaves" in worker.err
    with pytest.raises(DeploymentUnavailableError):
        greeter.say_hi.remote("too late").result(timeout_s=5)


def test_delete_answers_who_waits_when_all_workers_are_lost(work, invoke, alone):
    """The hosts burned down: `delete` itself clears up."""
    worker = work("--replicas", "Caller=1")
    runs("Caller", 1)
    response = serve.get_deployment_handle("Greeter", "default").say_hi.remote("nobody hosts it")
    os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()

    result = invoke("delete", "default", "--timeout-s", "20", env=alone.child_env())

    assert (result.exit_code, result.stdout) == (0, "Deleted: default.\n"), result.stderr
    with pytest.raises(DeploymentUnavailableError):
        response.result(timeout_s=1)


def test_a_replica_that_dies_is_replaced_and_its_call_runs_again(work, tmp_path):
    """As with an autoscaler."""
    work("--replicas", "Greeter=1")
    greeter = runs("Greeter", 1)
    pid = greeter.pid.remote().result(timeout_s=10)
    began = tmp_path / "began"
    response = greeter.hold.remote(0.5, str(began))
    eventually(began.exists, what="it runs")
    os.kill(pid, signal.SIGKILL)

    assert response.result(timeout_s=20) != pid
    assert began.read_text() == "xx"


def test_the_calls_of_a_lost_worker_go_to_another(work, tmp_path):
    """Power is lost: no leader hands them back, so the other workers do, when its lease has lapsed."""
    first = work("--replicas", "Greeter=1")
    greeter = runs("Greeter", 1)
    began = tmp_path / "began"
    response = greeter.hold.remote(1, str(began))
    eventually(began.exists, what="it runs")
    work("--replicas", "Greeter=1")
    runs("Greeter", 2)
    os.killpg(first.process.pid, signal.SIGKILL)

    assert isinstance(response.result(timeout_s=30), int)
    eventually(lambda: len(serve.status().nodes) == 1, what="the lost one is not shown")


def test_a_start_that_fails_is_shown_with_its_traceback_and_tried_again(work, invoke, alone):
    """The worker's own log is on another host; the pause keeps it from eating that host."""
    work(app="fixed:broken")
    eventually(lambda: "RuntimeError: there is no model file" in invoke("status", env=alone.child_env()).stdout)
    assert invoke("status", env=alone.child_env()).exit_code == 1
    told = "worker) RuntimeError: there is no model file"
    eventually(lambda: told in invoke("logs", "Broken", env=alone.child_env()).stdout)


def test_an_autoscaler_and_such_workers_leave_each_other_alone(work, alone):
    """Both may serve one namespace. Two that decide on the same replicas would undo each other."""
    cluster = Cluster(alone)
    cluster.start_autoscaler()
    cluster.start_worker()
    try:
        work("--replicas", "Greeter=2")
        greeter = runs("Greeter", 2)
        before = replicas("Greeter")
        other = serve.run(serve.deployment(name="Other")(echo).bind(), name="other")  # some turns of the autoscaler

        refused = work("--name", "other")
        assert refused.ended() == 2
        assert "autoscalers take care of it" in refused.err
        assert other.remote(1).result(timeout_s=10) == 1
        assert replicas("Greeter") == before
        assert greeter.say_hi.remote("you").result(timeout_s=10) == "hi you"
        serve.delete("default")
    finally:
        cluster.stop()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fixed:app", "--replicas", "Greter=1"), "the application has the deployments ['Greeter', 'Caller']"),
        (("fixed:app", "--replicas", "Greeter=some"), "is a whole number"),
        (("fixed:app", "--replicas", "Greeter"), "is not NAME=VALUE"),
        (("fixed:app", "--name", "a.b"), "The application name 'a.b'"),
        (("fixed:app", "--deployments", "x"), "hosts nothing else"),
        (("fixed:nothing",), "has no 'nothing'"),
        (("fixed:app", "size=large"), "takes no arguments"),
        (("--replicas", "Greeter=1"), "name it as well"),
        (("--name", "shop"), "name it as well"),
    ],
)
def test_wrong_usage_is_said_before_anything_starts(work, invoke, alone, folder, monkeypatch, arguments, says):
    """A worker that starts with less than was meant is found days later."""
    monkeypatch.chdir(folder)
    result = invoke("worker", *arguments, env=alone.child_env())
    assert result.exit_code == 2
    assert says in result.stderr
    assert serve.status().applications == {}


def echo(value: object) -> object:
    """A deployment of another kind of application."""
    return value


def replicas(deployment: str) -> set[str]:
    """The ids of its replicas."""
    return {replica.replica_id for replica in api.replicas() if replica.deployment == deployment}


def runs(deployment: str, count: int):
    """Wait until so many replicas of it run. Returns its handle."""

    def do_run() -> bool:
        apps = serve.status().applications
        info = apps["default"].deployments.get(deployment) if "default" in apps else None
        return info is not None and info.replica_states == {"RUNNING": count}

    eventually(do_run, within_s=20, what=f"{count} replicas of {deployment} run")
    return serve.get_deployment_handle(deployment, "default")
