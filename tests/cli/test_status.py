"""`qserve status` and `qserve ps`: what people and scripts read."""

from __future__ import annotations

import json
import signal
from contextlib import suppress

import pytest

import qserve as serve
from qserve import api
from qserve.client import portal
from qserve.errors import DeployFailed
from qserve.spec import Decision, ReplicaRecord, ServeStatus
from tests.cli.conftest import at_a_terminal


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


def test_an_application_is_named_as_an_argument_too(invoke):
    """`-n` is Ray Serve's; what is typed most needs no option."""
    assert invoke("status", "echo").stdout == invoke("status", "-n", "echo").stdout


def test_watch_tells_each_change_once_as_it_comes(start, settings):
    """A log of a release, made by events: nothing is asked while nothing happens."""
    watching = start("status", "--watch", settings=settings)
    watching.says("echo.Echo: HEALTHY, 2 RUNNING")
    api.scale("echo", "Echo", 3)
    watching.says("echo.Echo: HEALTHY, 3 RUNNING")
    api.scale("echo", "Echo", 2)
    serve.run(Echo.options(num_replicas=1).bind(), name="passing")
    watching.says("passing.Echo: HEALTHY, 1 RUNNING")
    serve.delete("passing")
    watching.says("passing.Echo: gone")
    watching.signal(signal.SIGINT)

    assert watching.ended() == 130
    assert "Traceback" not in watching.err
    assert watching.out.count("broken.Broken: DEPLOY_FAILED") == 1


def test_watch_follows_one_application_for_programs(start, settings):
    """A line of JSON for each change."""
    watching = start("status", "echo", "--watch", "--json", settings=settings)
    watching.says("}\n")
    watching.signal(signal.SIGTERM)
    watching.ended()

    assert list(json.loads(watching.out.splitlines()[0])["applications"]) == ["echo"]


def test_on_a_terminal_the_tables_stay_in_their_place(clean_env, settings, folder):
    """The screen of whoever watches a release."""
    seen = at_a_terminal(("status", "-w"), clean_env | settings.child_env(), folder, until="HEALTHY", keys="\x03")

    assert seen.code == 130
    assert "Traceback" not in seen.text
    assert "WAITING" not in seen.text  # queues change with every call, and no event tells of it


def test_a_row_for_each_replica_says_what_it_is_and_where(invoke):
    """Which process on which host, of which version, for how long."""
    (node,) = serve.status().nodes
    rows = [line.split() for line in invoke("ps", "echo.Echo").stdout.splitlines()]

    assert rows[0] == ["REPLICA", "DEPLOYMENT", "STATE", "WORKER", "PID", "GPUS", "VERSION", "AGE", "MESSAGE"]
    assert len(rows) == 3
    assert {tuple(row[1:4]) for row in rows[1:]} == {("echo.Echo", "RUNNING", node.node_id)}
    assert {int(row[4]) for row in rows[1:]} == {replica.pid for replica in api.replicas() if replica.app == "echo"}


def test_replicas_are_json_for_programs(invoke):
    """The records themselves."""
    found = [ReplicaRecord.model_validate(row) for row in json.loads(invoke("ps", "echo", "--json").stdout)]
    assert found == [replica for replica in api.replicas() if replica.app == "echo"]


def test_no_replica_is_said_in_words(invoke):
    """An autoscaled deployment may have none, and so may a namespace."""
    asleep = serve.deployment(name="Asleep", autoscaling_config={"min_replicas": 0})(lambda: None)
    serve.run(asleep.bind(), name="asleep")
    assert invoke("ps", "asleep.Asleep").stdout == "No replica of 'asleep.Asleep' is there.\n"
    serve.delete("asleep")
    assert invoke("ps", "--namespace", "empty").stdout == "No replica is there.\n"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nope", "Application 'nope' does not exist. There are: ["),
        ("echo.Nope", "application 'echo'. It has: ['Echo']"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_replicas_of_a_name_that_is_not_there_are_an_error(invoke, path, says, options):
    """A mistyped name must not pass for a deployment that sleeps."""
    result = invoke("ps", path, *options)
    assert result.exit_code == 2
    assert says in result.stderr


def test_the_autoscalers_decisions_are_told_with_their_reasons(invoke, settings):
    """Somebody asks why there were twelve at three in the morning."""
    assert invoke("status", "echo", "--decisions").stdout == "The autoscaler has changed nothing of 'echo' yet.\n"
    portal.use(settings)
    core = portal.portal().core
    key = f"qserve:1:{{{settings.namespace}}}:decisions:echo.Echo"
    for number in (2, 3):
        made = Decision(at_s=1.7e9 + number, before=number - 1, after=number, reason=f"{number}0 calls wait")
        portal.portal().run(_push(core, key, made.to_json()))

    rows = [line.split() for line in invoke("status", "echo", "--decisions").stdout.splitlines()]
    assert [row[2:] for row in rows[1:]] == [
        ["echo.Echo", "2", "3", "30", "calls", "wait"],
        ["echo.Echo", "1", "2", "20", "calls", "wait"],
    ]
    found = json.loads(invoke("status", "echo", "--decisions", "--json").stdout)
    assert [decision["after"] for decision in found["echo.Echo"]] == [3, 2]


async def _push(core, key, raw):
    """As the autoscaler keeps them: the newest first."""
    await core.link.call("LPUSH", key, raw)
