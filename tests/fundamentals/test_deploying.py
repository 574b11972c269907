"""`serve.run`, `serve.status`, `serve.delete`: an application is put up, looked at, and taken down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import qserve as serve
from qserve.errors import DeployFailed, DeploymentUnavailableError, DeployTimeout, SerializationError
from qserve.exceptions import RayServeException
from qserve.handle import DeploymentHandle
from qserve.spec import ApplicationStatus
from tests.fundamentals.apps import Gate
from tests.support.cluster import ROOT, eventually


@serve.deployment
class Model:
    def __init__(self, answer: int = 42) -> None:
        self.answer = answer

    def __call__(self) -> int:
        return self.answer

    def context(self) -> dict[str, Any]:
        context = serve.get_replica_context()
        return {
            "app_name": context.app_name,
            "deployment": context.deployment,
            "replica_tag": context.replica_tag,
            "replica_id": context.replica_id,
            "answer": context.servable_object.answer,
        }


@serve.deployment
class Hesitant:
    """Its constructor waits at a gate."""

    async def __init__(self, gate: DeploymentHandle[Any], name: str) -> None:  # type: ignore[misc]  # the replica awaits it
        await gate.wait.remote(name)

    def __call__(self) -> str:
        return "ready"


@pytest.fixture
def gate(cluster):
    """What constructors of this file wait at; deployed again, the same code restarts nothing."""
    return serve.run(Gate.bind(), name="gate")


def test_run_returns_when_the_application_answers(cluster):
    """The line after `serve.run` may call."""
    handle = serve.run(Model.bind(7), name="model")

    assert isinstance(handle, DeploymentHandle)
    assert serve.status().applications["model"].status == "RUNNING"
    assert handle.remote().result(timeout_s=5) == 7


def test_without_a_name_the_application_is_called_default(cluster):
    """As in Ray Serve."""
    serve.run(Model.bind())

    assert serve.get_app_handle("default").remote().result(timeout_s=5) == 42
    serve.delete("default")


async def test_run_works_inside_an_event_loop(cluster):
    """A web framework's startup function is async."""
    handle = serve.run(Model.bind(8), name="async")

    assert await handle.remote() == 8


def test_status_tells_applications_deployments_and_replicas(cluster):
    """What a person or a monitor asks first, in Ray Serve's words."""
    before = time.time()
    serve.run(Model.options(num_replicas=2).bind(), name="shown")
    app = serve.status().applications["shown"]

    assert app.status == ApplicationStatus.RUNNING == "RUNNING"
    assert before - 1 < app.last_deployed_time_s < time.time() + 1
    model = app.deployments["Model"]
    assert (model.status, model.status_trigger) == ("HEALTHY", "CONFIG_UPDATE_COMPLETED")
    assert model.replica_states == {"RUNNING": 2}
    assert (model.waiting, model.running) == (0, 0)
    assert len(serve.status().nodes) == 1


def test_status_counts_waiting_and_running_calls(gate):
    """The length of the queue, exact and at once."""
    one_by_one = serve.run(Gate.options(name="One", max_ongoing_requests=1).bind(), name="counted")
    responses = [one_by_one.wait.remote("counted") for _ in range(3)]
    while responses[0].status() != "RUNNING":
        pass

    counted = serve.status().applications["counted"].deployments["One"]
    assert (counted.waiting, counted.running) == (2, 1)
    serve.delete("counted")


def test_status_is_plain_data_too(cluster):
    """For JSON, and for people who want to grep."""
    serve.run(Model.bind(), name="plain")

    assert serve.status().to_dict()["applications"]["plain"]["deployments"]["Model"]["status"] == "HEALTHY"


def test_a_replica_knows_where_it_is(cluster):
    """Names for logs and metrics, and the object itself."""
    handle = serve.run(Model.bind(3), name="placed")
    context = handle.context.remote().result(timeout_s=5)

    assert (context["app_name"], context["deployment"], context["answer"]) == ("placed", "Model", 3)
    assert context["replica_id"] == context["replica_tag"] != ""


def test_outside_of_a_replica_there_is_no_context(cluster):
    """A helper that is called from both sides must be able to tell."""
    with pytest.raises(RayServeException, match="may only be called from within a replica"):
        serve.get_replica_context()


def test_delete_waits_until_the_application_is_gone(cluster):
    """The line after `serve.delete` may rely on it: no replica, no status, no handle."""
    handle = serve.run(Model.bind(), name="short")
    pid = set(cluster.replica_pids())
    serve.delete("short")

    assert "short" not in serve.status().applications
    assert set(cluster.replica_pids()) < pid
    with pytest.raises(RayServeException, match="'short' does not exist"):
        serve.get_app_handle("short")
    with pytest.raises(DeploymentUnavailableError, match="is not deployed"):
        handle.remote().result(timeout_s=5)


def test_delete_of_an_unknown_name_does_nothing(cluster):
    """Cleaning up twice is no error."""
    serve.delete("never was")


def test_a_handle_kept_over_a_delete_works_after_the_next_deploy(cluster):
    """A web server need not restart because the application behind it did."""
    handle = serve.run(Model.bind(1), name="again")
    serve.delete("again")
    serve.run(Model.bind(2), name="again")

    assert handle.remote().result(timeout_s=5) == 2


def test_calls_that_wait_when_their_deployment_is_deleted_are_answered(gate):
    """Nobody waits for ever for something that is gone."""
    one_by_one = serve.run(Gate.options(name="One", max_ongoing_requests=1).bind(), name="doomed")
    responses = [one_by_one.wait.remote("doomed") for _ in range(5)]
    while responses[0].status() != "RUNNING":
        pass
    serve.delete("doomed")

    for response in responses:
        with pytest.raises(DeploymentUnavailableError, match="was deleted"):
            response.result(timeout_s=5)


@serve.deployment
class Broken:
    """Its constructor fails, unless it is told not to."""

    def __init__(self, *, is_mended: bool = False) -> None:
        if not is_mended:
            raise ValueError("no weights")

    def __call__(self) -> str:
        return "mended"


def test_calls_to_a_deployment_that_failed_to_deploy_are_answered(cluster):
    """No replica will ever take them. Also those that come when all is quiet again hear so at once."""
    handle: DeploymentHandle[Any] = DeploymentHandle("Broken", "broken")
    with pytest.raises(DeployFailed, match="no weights"):
        serve.run(Broken.bind(), name="broken")
    for _ in range(2):
        asked_at = time.monotonic()
        with pytest.raises(DeploymentUnavailableError, match="is unavailable because it failed to deploy"):
            handle.remote().result(timeout_s=10)
        assert time.monotonic() - asked_at < 2.5

    serve.run(Broken.bind(is_mended=True), name="broken")
    assert handle.remote().result(timeout_s=5) == "mended"


def test_run_gives_up_after_its_timeout_and_says_what_it_waits_for(gate):
    """A pipeline must not hang on a constructor that does; the deploy itself goes on."""
    with pytest.raises(DeployTimeout, match=r"'slow' is not running after 0.5 s. .*0 of 1 replicas.*goes on"):
        serve.run(Hesitant.bind(gate, "slow"), name="slow", timeout_s=0.5)
    assert serve.status().applications["slow"].status == "DEPLOYING"

    gate.open.remote("slow")
    assert serve.get_app_handle("slow").remote().result(timeout_s=10) == "ready"


def test_progress_is_told_while_it_waits(gate):
    """What a terminal shows while replicas start."""
    seen: list[Any] = []

    def on_progress(info):
        seen.append(info.status)
        gate.open.remote("progress")

    serve.run(Hesitant.bind(gate, "progress"), name="progress", on_progress=on_progress)
    assert seen[0] == "DEPLOYING"
    assert seen[-1] == "RUNNING"


@pytest.mark.parametrize("target", [Model, Model.func_or_class, "Model", None])
def test_only_an_application_can_be_run(cluster, target):
    """The commonest slip is a forgotten `.bind()`."""
    with pytest.raises(TypeError, match=r"expects an `Application` returned by `Deployment.bind\(\)`"):
        serve.run(target)


@pytest.mark.parametrize("prefix", ["api", "/api/", "/{id}"])
def test_a_wrong_route_prefix_is_refused(cluster, prefix):
    """Before anything is deployed."""
    with pytest.raises(ValueError, match="route_prefix="):
        serve.run(Model.bind(), name="routed", route_prefix=prefix)
    assert "routed" not in serve.status().applications


@pytest.mark.parametrize("name", ["", "with space", "with.dot"])
def test_a_wrong_application_name_is_refused(cluster, name):
    """Names become keys in Redis and parts of ids."""
    with pytest.raises(RayServeException, match="The application name"):
        serve.run(Model.bind(), name=name)


def test_arguments_that_cannot_travel_are_named(cluster):
    """A lock, a socket or an open file is built in the constructor, not passed to it."""
    with pytest.raises(SerializationError, match=r"Could not serialize the deployment 'Model'.*lock"):
        serve.run(Model.bind(threading.Lock()), name="locked")
    with pytest.raises(TypeError):
        serve.run(Model.bind(threading.Lock()), name="locked")


def test_a_deployment_itself_cannot_be_called_or_constructed(cluster):
    """`Model()` in an old script gets an explanation."""
    with pytest.raises(RuntimeError, match=r"cannot be called or constructed directly.*Model.bind"):
        Model()


def test_several_applications_are_deployed_together(cluster):
    """In one step: they start beside each other, and all of them run when it returns."""
    one, two = serve.run_many(
        [serve.RunTarget(Model.bind(1), name="one"), serve.RunTarget(Model.bind(2), "two", "/two")]
    )

    assert [one.remote().result(timeout_s=5), two.remote().result(timeout_s=5)] == [1, 2]
    with pytest.raises(RayServeException, match="Application names must be unique"):
        serve.run_many([serve.RunTarget(Model.bind()), serve.RunTarget(Model.bind())])


def test_a_route_that_another_application_has_is_refused(cluster):
    """Requests would go to either. Who names no route gets "/" if it is free, and none if not."""
    serve.run_many(
        [serve.RunTarget(Model.bind(), name="first", route_prefix="/mine"), serve.RunTarget(Model.bind(), "a")]
    )
    with pytest.raises(RayServeException, match='Prefix /mine is being used by application "first"'):
        serve.run(Model.bind(), name="second", route_prefix="/mine")
    serve.run(Model.bind(), name="b")
    serve.run(Model.bind(), name="first", route_prefix="/mine")

    routes = {app.name: app.route_prefix for app in serve.api.wanted()}
    assert (routes["first"], list(routes.values()).count("/"), routes["b"]) == ("/mine", 1, None)
    assert "second" not in routes


def test_arguments_of_ray_serves_are_accepted(cluster):
    """A ported script begins with `serve.start(...)`, and says how it logs."""
    serve.start(proxy_location="EveryNode", http_options={"port": 80})
    handle = serve.run(
        Model.bind(9), name="ported", logging_config={"log_level": "DEBUG"}, external_scaler_enabled=False
    )

    assert handle.remote().result(timeout_s=5) == 9
    assert serve.api.wanted("ported")[0].deployments[0].config.logging_config == {"log_level": "DEBUG"}


def test_local_testing_mode_says_what_there_is_instead(cluster):
    """The embedded cluster starts in a second; a test of it tests what runs in production."""
    with pytest.raises(RayServeException, match=r"There is no local testing mode.*a whole cluster on this host"):
        serve.run(Model.bind(), _local_testing_mode=True)


def test_blocking_stays_until_ctrl_c(cluster):
    """As a service's last line; KeyboardInterrupt reaches the script, which may clean up."""
    script = (
        "import qserve as serve\n"
        "from tests.fundamentals.test_deploying import Model\n"
        "try:\n"
        "    serve.run(Model.bind(), blocking=True, name='blocking')\n"
        "except KeyboardInterrupt:\n"
        "    print('cleaned up')\n"
    )
    env = {**cluster.settings.child_env(), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True)
    eventually(lambda: _is_running("blocking"))
    assert process.poll() is None
    process.send_signal(signal.SIGINT)

    assert process.communicate(timeout=10)[0] == "cleaned up\n"


def _is_running(app: str) -> bool:
    info = serve.status().applications.get(app)
    return info is not None and info.status == "RUNNING"


def test_a_deploy_that_somebody_else_replaces_says_so(gate):
    """Else it would wait for its own version until the timeout, and blame the model."""
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: serve.run(Hesitant.bind(gate, "replaced"), name="contested"))
        eventually(lambda: gate.waiting.remote("replaced").result(timeout_s=5) == 1)
        serve.run(Model.bind(), name="contested")
        with pytest.raises(DeployFailed, match="contested was deployed again by somebody else"):
            waiting.result(timeout=10)
    gate.open.remote("replaced")


async def test_shutdown_has_an_async_form(cluster):
    """For the shutdown function of a web framework."""
    serve.run(Model.bind(), name="short")
    await serve.shutdown_async()

    assert serve.status().applications == {}


def test_shutdown_takes_all_applications_down(gate):
    """One line ends everything of this namespace; the cluster itself is the operator's."""
    serve.run(Model.bind(), name="one")
    serve.shutdown()

    assert serve.status().applications == {}
    serve.shutdown()
    assert serve.run(Model.bind(5), name="after").remote().result(timeout_s=5) == 5


def test_replicas_are_processes_of_their_own(cluster):
    """One replica, one process: no shared lock, no shared crash."""
    handle = serve.run(Process.options(num_replicas=2).bind(), name="processes")
    pids = {handle.remote().result(timeout_s=5) for _ in range(50)}

    assert pids <= set(cluster.replica_pids())
    assert os.getpid() not in pids


@serve.deployment
class Process:
    def __call__(self) -> int:
        return os.getpid()
