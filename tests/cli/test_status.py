"""`qserve status`: what people and scripts read."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

import qserve as serve
from qserve.errors import DeployFailed
from qserve.spec import ServeStatus


@serve.deployment(num_replicas=2)
class Echo:
    def __call__(self, value):
        return value


@serve.deployment
class Broken:
    def __init__(self):
        raise RuntimeError("there is no model file")


@pytest.fixture(scope="module", autouse=True)
def apps(cluster):
    """One application that runs, and one that does not."""
    serve.run(Echo.bind(), name="echo")
    with suppress(DeployFailed):
        serve.run(Broken.bind(), name="broken")


def test_a_row_for_each_deployment_says_how_its_replicas_and_its_queue_are(invoke):
    """One look says whether it serves."""
    result = invoke("status", "--name", "echo")
    (row,) = [line.split() for line in result.stdout.splitlines() if line.startswith("echo.Echo")]
    assert row == ["echo.Echo", "HEALTHY", "2", "RUNNING", "0", "0"]
    assert result.exit_code == 0


def test_a_row_for_each_worker_says_where_it_is_and_what_it_offers(invoke):
    """Which host has room, and which version it runs."""
    (node,) = serve.status().nodes
    (row,) = [line for line in invoke("status").stdout.splitlines() if line.startswith(node.node_id)]
    assert str(node.pid) in row
    assert f"num_cpus {node.resources['num_cpus']:g}" in row
    assert node.python in row


def test_a_pipe_gets_no_colours_and_no_cut_lines(invoke):
    """grep, awk and logs: a row is a line."""
    result = invoke("status")
    assert "\x1b" not in result.stdout
    assert "RuntimeError: there is no model file" in result.stdout


def test_json_is_the_status_of_the_api(invoke):
    """One shape for programs, whichever way they ask."""
    found = ServeStatus.model_validate(json.loads(invoke("status", "--json").stdout))
    assert found == serve.status()


def test_one_application_is_shown_by_its_name(invoke):
    """A script that waits for its own application does not care for others."""
    result = invoke("status", "--name", "echo", "--json")
    assert list(json.loads(result.stdout)["applications"]) == ["echo"]
    assert result.exit_code == 0


def test_an_unknown_name_is_told_apart_from_a_broken_one(invoke):
    """2 is a typing error, 1 is an outage."""
    result = invoke("status", "--name", "nope")
    assert result.exit_code == 2
    assert "Application 'nope' does not exist. There are: ['broken', 'echo']." in result.stderr


def test_a_failed_application_exits_with_1_and_shows_its_traceback(invoke):
    """A health check in a script needs the code; a person needs the line in their own file."""
    result = invoke("status", "--name", "broken")
    assert result.exit_code == 1
    assert "broken.Broken: The deployment failed to start 3 times in a row." in result.stdout
    assert "test_status.py" in result.stdout


def test_an_empty_namespace_says_what_is_not_there(invoke):
    """Most often it is the wrong namespace: its name is in the message."""
    result = invoke("status", "--namespace", "empty")
    assert "No application is deployed in namespace 'empty'." in result.stdout
    assert "No worker has joined: start `qserve worker`." in result.stdout
    assert result.exit_code == 0


def test_without_a_cluster_it_says_how_to_name_one(invoke):
    """An empty table would look as if all were lost."""
    result = invoke("status", env={"QSERVE_REDIS_URL": None})
    assert result.exit_code == 78
    assert "set QSERVE_REDIS_URL" in result.stderr


@pytest.mark.slow
def test_a_redis_that_is_down_is_named_with_its_password_masked(invoke):
    """5 s of trying, then the address that was tried, on one line."""
    result = invoke("status", env={"QSERVE_REDIS_URL": "redis://me:pa55@localhost:1/0"})
    assert result.exit_code == 69
    assert "Redis at redis://me:***@localhost:1/0 cannot be reached" in result.stderr
    assert "pa55" not in result.output
