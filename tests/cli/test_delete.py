"""`qserve delete` and `qserve shutdown`: nothing goes unasked, and nothing is said to be gone that is not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

import qserve as serve
from qserve.client import portal
from qserve.errors import DeploymentUnavailableError, DeployTimeout
from qserve.spec import ApplicationStatus, ApplicationStatusInfo
from qserve.store.state import Change, ClusterState
from tests.cli.conftest import at_a_terminal
from workers.echo import app


@pytest.fixture
def names(cluster):
    """Two applications that run."""
    for name in ("one", "two"):
        serve.run(app, name=name)
    return {"one", "two"}


def test_delete_takes_down_one_application_and_waits_until_it_is_gone(invoke, names):
    """What follows in a script may rely on it."""
    result = invoke("delete", "one")
    assert (result.exit_code, result.stdout) == (0, "Deleted: one.\n")
    assert set(serve.status().applications) == {"two"}


def test_delete_of_an_unknown_name_says_which_there_are(invoke, names):
    """It would be taken for done."""
    result = invoke("delete", "nope")
    assert result.exit_code == 2
    assert "There are: ['one', 'two']." in result.stderr


def test_shutdown_refuses_when_nobody_can_be_asked(invoke, names):
    """A line pasted into a script must not empty a cluster."""
    result = invoke("shutdown")
    assert result.exit_code == 2
    assert "say --yes" in result.stderr
    assert set(serve.status().applications) == names


def test_shutdown_asks_on_a_terminal_and_takes_no_for_an_answer(names, clean_env, settings, folder):
    """With what it is about to delete, and where."""
    env = clean_env | settings.child_env()
    seen = at_a_terminal(("shutdown",), env, folder, until="[y/N]", keys="n\n")
    assert f"Delete one, two of namespace '{settings.namespace}'?" in seen.text
    assert seen.code == 1
    assert set(serve.status().applications) == names


def test_shutdown_takes_down_all_applications_and_leaves_the_workers(invoke, names):
    """They are infrastructure: other applications come."""
    result = invoke("shutdown", "--yes")
    assert (result.exit_code, result.stdout) == (0, "Deleted: one, two.\n")
    assert serve.status().applications == {}
    assert len(serve.status().nodes) == 1


def test_shutdown_of_nothing_says_so(invoke):
    """With the namespace, which may be the wrong one."""
    result = invoke("shutdown", "--namespace", "empty")
    assert (result.exit_code, result.stdout) == (0, "No application is deployed in namespace 'empty'.\n")


def test_without_an_autoscaler_delete_does_not_claim_that_it_is_gone(invoke, settings, alone):
    """Nobody tells the replicas: they go on."""
    with suppress(DeployTimeout):
        serve.run(app, name="orphan", timeout_s=0)
    status = ApplicationStatusInfo(status=ApplicationStatus.RUNNING)
    portal.portal().run(_show("orphan", status))
    result = invoke("delete", "orphan", env=alone.child_env())

    assert result.exit_code == 0
    assert result.stdout == "Not wanted any more: orphan. They go on until a `qserve autoscaler` runs.\n"


def test_calls_of_what_no_autoscaler_has_ever_seen_are_refused_as_well(invoke, alone):
    """Else they would run in the next application of that name, long after they were given up."""
    with suppress(DeployTimeout):
        serve.run(app, name="unseen", timeout_s=0)
    response = serve.get_app_handle("unseen").remote("waits")
    assert response.status() == "QUEUED"
    result = invoke("delete", "unseen", env=alone.child_env())

    assert (result.exit_code, result.stdout) == (0, "Deleted: unseen.\n")
    with pytest.raises(DeploymentUnavailableError, match="was deleted before the call ran"):
        response.result(timeout_s=5)


@pytest.fixture
def alone(settings):
    """A namespace of its own, without any process."""
    chosen = replace(settings, namespace=f"{settings.namespace}-alone")
    portal.use(chosen)
    yield chosen
    portal.use(settings)


async def _show(app: str, status: ApplicationStatusInfo) -> None:
    """What a leader left behind."""
    core = portal.current_core()
    state = ClusterState(core.link, core.settings.namespace, core.ring)
    await state.write([Change(state.keys.statuses, app, status.to_json())], "status")
