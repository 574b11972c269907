"""`qserve doctor`: what keeps a cluster from working, and the mend of it."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from dataclasses import replace

import pytest

import qserve as serve
from qserve import doctor
from qserve.config import Settings
from qserve.doctor import Queue, Verdict
from qserve.errors import DeployFailed
from qserve.spec import DeploymentStatus, DeploymentStatusInfo
from qserve.store.connection import parse_url
from qserve.wire.keys import ClusterKeys, deployment_keys
from workers.echo import app

OK, WARN, FAIL = Verdict.OK, Verdict.WARN, Verdict.FAIL
KEY = (b"0123456789abcdef",)


def verdicts(result) -> dict[str, str]:
    """Each check's verdict, of `qserve doctor --json`."""
    return {check["name"]: check["verdict"] for check in json.loads(result.stdout)["checks"]}


# Judging, by facts alone


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"redis_version": "6.2.14"}, FAIL),
        ({"redis_version": "7.0.0"}, OK),
        ({"redis_version": "8.2.1"}, OK),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.5"}, OK),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, OK),
        ({}, FAIL),
    ],
)
def test_servers_from_redis_7_0_and_valkey_7_2_on_are_new_enough(facts, verdict):
    """Older ones lack commands that the data path is made of. Valkey says redis_version 7.2.4 for ever."""
    assert doctor.judge_version(facts).verdict is verdict


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"maxmemory_policy": "noeviction", "maxmemory": "1000"}, OK),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}, WARN),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "1000"}, FAIL),
    ],
)
def test_a_server_that_evicts_drops_calls(facts, verdict):
    """The default of many hosted caches, and the quietest way to lose work."""
    assert doctor.judge_eviction(facts).verdict is verdict


@pytest.mark.parametrize(("enabled", "verdict"), [("1", OK), ("0", WARN)])
def test_a_server_that_does_not_persist_is_warned_of(enabled, verdict):
    """It works, until it restarts."""
    assert doctor.judge_persistence({"aof_enabled": enabled}).verdict is verdict


@pytest.mark.parametrize(
    ("url", "settings", "verdict"),
    [
        ("redis://far:6379/0", Settings(secrets=KEY), OK),
        ("redis://far:6379/0", Settings(), FAIL),
        ("redis://far:6379/0", Settings(insecure=True), WARN),
        ("redis://localhost:6379/0", Settings(), WARN),
        ("unix:///run/q.sock", Settings(), WARN),
    ],
)
def test_a_missing_key_fails_on_a_network_and_is_warned_of_on_this_host(url, settings, verdict):
    """Who can write to that Redis can run code here."""
    assert doctor.judge_secret(settings, parse_url(url)).verdict is verdict


def test_the_key_itself_is_never_shown():
    """Reports are pasted into tickets."""
    assert KEY[0].decode() not in doctor.judge_secret(Settings(secrets=KEY), parse_url("redis://far/0")).finding


@pytest.mark.parametrize(("ahead_s", "verdict"), [(0.2, OK), (-0.2, OK), (30.0, WARN), (-30.0, WARN)])
def test_clocks_far_apart_are_warned_of(ahead_s, verdict):
    """Nothing breaks; but nobody can put the hosts' log lines in order."""
    assert doctor.judge_clock(ahead_s).verdict is verdict


@pytest.mark.parametrize(
    ("waiting", "running", "verdict"), [(0, 0, OK), (5, 2, OK), (5, 0, FAIL)], ids=["idle", "served", "stuck"]
)
def test_calls_that_wait_without_a_replica_are_found(waiting, running, verdict):
    """Callers only see a time-out; here is the deployment and the reason."""
    info = DeploymentStatusInfo(status=DeploymentStatus.UPDATING, replica_states={"RUNNING": running}, message="Full.")
    (check,) = doctor.judge_queues([Queue("app.Model", info, waiting)])
    assert check.verdict is verdict
    assert check.mend == ("Full." if verdict is FAIL else "")


def test_what_is_not_ok_has_a_mend():
    """A finding without one sends people to the source code."""
    checks = [
        doctor.judge_version({}),
        doctor.judge_eviction({}),
        doctor.judge_persistence({}),
        doctor.judge_clock(9.0),
        doctor.judge_leader(None),
        doctor.judge_workers([]),
        doctor.judge_secret(Settings(), parse_url("redis://far/0")),
    ]
    assert all(check.mend for check in checks)


# The command


def test_a_cluster_that_works_passes_every_check(invoke, cluster):
    """0, so that it serves as a health check."""
    serve.run(app, name="echo")
    result = invoke("doctor", "--json")

    assert set(verdicts(result).values()) == {"ok"}
    assert json.loads(result.stdout)["ok"] is True
    assert result.exit_code == 0


def test_a_row_for_each_check_has_its_mend_on_the_same_line(invoke, settings):
    """In a pipe as on a terminal."""
    result = invoke("doctor", "--namespace", f"{settings.namespace}-empty")
    (row,) = [line for line in result.stdout.splitlines() if " autoscaler " in line]
    assert row.startswith("fail")
    assert "Run `qserve autoscaler`." in row


def test_a_namespace_without_processes_fails(invoke, settings):
    """Redis is well, and yet nothing would be served."""
    result = invoke("doctor", "--json", "--namespace", f"{settings.namespace}-empty")
    found = verdicts(result)
    assert (found["redis"], found["autoscaler"], found["workers"]) == ("ok", "fail", "fail")
    assert result.exit_code == 1


def test_another_key_is_found(invoke, cluster):
    """The web host got last month's key: everything looks well there, and nothing comes back."""
    serve.run(app, name="echo")
    result = invoke("doctor", "--json", env={"QSERVE_SECRET_KEY": "another-key-of-enough-bytes"})
    assert verdicts(result)["signatures"] == "fail"
    assert result.exit_code == 1


def test_entries_in_quarantine_are_shown_with_the_reason(invoke, cluster, server):
    """Somebody writes to this Redis who should not, or with the wrong key. It may be an attack."""
    serve.run(app, name="echo")
    keys = deployment_keys(cluster.settings.namespace, "echo", "Echo")
    server.xadd(keys.quarantine, {"entry": "1-1", "reason": "It is unsigned.", "raw": b"?"})
    result = invoke("doctor", "--json")
    server.delete(keys.quarantine)

    (check,) = [check for check in json.loads(result.stdout)["checks"] if check["name"] == "quarantine"]
    assert check["verdict"] == "warn"
    assert "echo.Echo: 1 entries were not trusted. The last one: It is unsigned." in check["finding"]
    assert result.exit_code == 0


def test_calls_of_a_deployment_that_failed_are_found(invoke, cluster, server):
    """The mend is the replica's own error. The leader answers such calls; while it hangs they wait."""
    with suppress(DeployFailed):
        serve.run(_Broken.bind(), name="broken")
    keys = deployment_keys(cluster.settings.namespace, "broken", "_Broken")
    (leader,) = cluster.autoscalers
    leader.send_signal(signal.SIGSTOP)
    try:
        server.xadd(keys.calls, {"c": b"a call that waits"})
        result = invoke("doctor", "--json")
    finally:
        leader.send_signal(signal.SIGCONT)
    serve.delete("broken")

    (check,) = [check for check in json.loads(result.stdout)["checks"] if check["name"] == "queue"]
    assert "broken._Broken: 1 calls wait and no replica runs." in check["finding"]
    assert "there is no model file" in check["mend"]


def test_without_a_url_it_explains_what_then_happens(invoke):
    """A newcomer's first command, perhaps: nothing is wrong, and nothing is embedded by looking."""
    result = invoke("doctor", env={"QSERVE_REDIS_URL": None})
    assert "QSERVE_REDIS_URL is not set: serve.run() and `qserve run` start a cluster of their own" in result.stdout
    assert result.exit_code == 0


def test_without_a_url_and_without_a_server_to_embed_it_fails(invoke):
    """The two ways there are; both are named."""
    result = invoke("doctor", "--json", env={"QSERVE_REDIS_URL": None, "QSERVE_BROKER_BINARY": "/no/such/server"})
    assert verdicts(result) == {"url": "warn", "embedded server": "fail"}
    assert result.exit_code == 1


def test_a_url_that_cannot_be_read_is_a_finding(invoke):
    """Not an error of the doctor's."""
    result = invoke("doctor", "--json", env={"QSERVE_REDIS_URL": "http://host"})
    assert verdicts(result) == {"url": "fail"}


def test_an_application_deployed_with_another_key_is_named(invoke, cluster, server):
    """Nobody serves it, and its own deployer may not know."""
    keys = ClusterKeys(cluster.settings.namespace)
    server.hset(keys.apps, "strange", b"qs: not signed by anyone who is known here")
    result = invoke("doctor")
    server.hdel(keys.apps, "strange")

    assert "Deployed with another key, and not served: strange." in result.stdout
    assert result.exit_code == 1


@pytest.mark.slow
def test_a_redis_that_is_down_ends_the_examination(invoke, settings):
    """What needs it is left out; what does not is still said."""
    away = replace(settings, redis_url="redis://:pa55@localhost:1/0", secrets=())
    result = invoke("doctor", "--json", env=away.child_env())
    assert verdicts(result) == {"url": "ok", "secret key": "warn", "redis": "fail"}
    assert "pa55" not in result.output


@serve.deployment
class _Broken:
    def __init__(self):
        raise RuntimeError("there is no model file")
