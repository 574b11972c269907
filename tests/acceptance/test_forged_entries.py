"""Whoever can write to Redis but lacks the secret: nothing of theirs is unpickled, and others are served meanwhile."""

from __future__ import annotations

import os
import pickle
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from struct import pack
from typing import Any

import pytest

import qserve as serve
from qserve.client import portal
from qserve.config import Settings
from qserve.errors import CallRejected, SignatureError
from qserve.handle import DeploymentHandle
from qserve.wire.keys import ClusterKeys, DeploymentKeys, deployment_keys
from qserve.wire.messages import Call, Outcome, Reply, seal_call, seal_control, seal_reply
from qserve.wire.signing import Direction, KeyRing
from tests.fundamentals.apps import Gate
from tests.support.cluster import SECRET, Cluster, cluster_in, eventually, namespace_on

OTHER_SECRET = b"somebody-elses-key-0123456789abcdef"


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@serve.deployment(max_ongoing_requests=4)
class Echo:
    def __call__(self, value: Any = None) -> Any:
        return value


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
    """The deployment that is attacked."""
    return serve.run(Echo.bind(), name="echo")


@pytest.fixture
def keys(settings) -> DeploymentKeys:
    """Its keys, as an attacker reads them off the server."""
    return deployment_keys(settings.namespace, "echo", "Echo")


@pytest.fixture
def canary(tmp_path) -> Iterator[Path]:
    """Must not exist when the test ends."""
    path = tmp_path / "unpickled"
    yield path
    assert not path.exists(), "a forged pickle was loaded"


def ring_of(kind: str) -> KeyRing:
    """The key ring of somebody with the right secret, the wrong one, or none."""
    return KeyRing({"right": (SECRET,), "wrong": (OTHER_SECRET,), "unsigned": ()}[kind])


def forged_call(canary: Path, scope: str, kind: str = "wrong") -> bytes:
    """A call as the attacker can make it: everything is right but the signature."""
    payload = pickle.dumps(((Canary(canary),), {}))
    call = Call(secrets.token_bytes(16), "__call__", "qserve:1:inbox:attacker", payload)
    return seal_call(call, ring_of(kind).signer(Direction.CALL, scope))


def flipped(data: bytes, at: int) -> bytes:
    """The same bytes with one bit changed."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def attacks(canary: Path, keys: DeploymentKeys) -> dict[str, dict[str, bytes]]:
    """Entries by what is wrong with them."""
    wrong = forged_call(canary, keys.scope)
    good = forged_call(canary, keys.scope, "right")
    moved = forged_call(canary, "forged:other:Echo", "right")
    as_reply = seal_reply(
        Reply(secrets.token_bytes(16), Outcome.DONE, pickle.dumps(Canary(canary))),
        ring_of("right").signer(Direction.REPLY, keys.scope),
    )
    return {
        "signed with another key": {"c": wrong, "a": b"1"},
        "unsigned": {"c": forged_call(canary, keys.scope, "unsigned")},
        "truncated": {"c": good[: len(good) // 2]},
        "cut by one byte": {"c": good[:-1]},
        "padded": {"c": good + b"\0"},
        "one bit of the payload changed": {"c": flipped(good, len(good) - 20)},
        "one bit of the signature changed": {"c": flipped(good, len(good) - 1)},
        "one bit of the header changed": {"c": flipped(good, 12)},
        "signed for another deployment": {"c": moved},
        "a reply where a call belongs": {"c": as_reply},
        "a bare pickle": {"c": pickle.dumps(Canary(canary))},
        "of another protocol version": {"c": good[:2] + b"\x63" + good[3:]},
        "empty": {"c": b""},
        "without the field": {"x": b"junk"},
        "with an attempt that is no number": {"c": wrong, "a": b"many"},
    }


def test_forged_entries_are_set_aside_unopened_and_neighbours_are_served(echo, keys, server, canary):
    """All kinds of bad entries between good calls: none is loaded, each is kept as evidence, the good are answered."""
    before = server.xlen(keys.quarantine)
    responses = []
    bad = attacks(canary, keys)
    for number, entry in enumerate(bad.values()):
        server.xadd(keys.calls, entry)
        responses.append(echo.remote(number))

    assert serve.get(responses, timeout_s=5) == list(range(len(bad)))
    eventually(lambda: server.xlen(keys.quarantine) - before == len(bad), what=str(bad.keys()))
    assert server.xlen(keys.calls) + server.xlen(keys.front) == 0
    reasons = [fields[b"reason"].decode() for _, fields in server.xrange(keys.quarantine)]
    assert any("signed with key" in reason for reason in reasons)
    assert any("unsigned" in reason for reason in reasons)
    assert any("truncated" in reason for reason in reasons)


def test_a_forged_reply_is_not_opened_and_the_right_one_still_comes(cluster, settings, server, canary):
    """A note with a forged reply on the caller's channel is ignored: the record decides, and it has none yet."""
    gate = serve.run(Gate.bind(), name="gate")
    keys = deployment_keys(settings.namespace, "gate", "Gate")
    response = gate.wait.remote("forged reply", 42)
    eventually(lambda: response.status() == "RUNNING")
    forged = seal_reply(
        Reply(response.call_id, Outcome.DONE, pickle.dumps(Canary(canary))),
        ring_of("wrong").signer(Direction.REPLY, keys.scope),
    )

    server.publish(portal.portal().core.channel, pack(">I", len(forged)) + forged)
    gate.open.remote("forged reply")
    assert response.result(timeout_s=5) == 42


def test_a_forged_record_is_an_error_and_not_a_value(cluster, settings, server, canary):
    """Whoever writes a reply into the record reaches the caller with an error that says so, never with a pickle."""
    gate = serve.run(Gate.bind(), name="gate")
    keys = deployment_keys(settings.namespace, "gate", "Gate")
    made = gate.wait.remote("forged record", 42)
    eventually(lambda: made.status() == "RUNNING")
    forged = seal_reply(
        Reply(made.call_id, Outcome.DONE, pickle.dumps(Canary(canary))),
        ring_of("wrong").signer(Direction.REPLY, keys.scope),
    )

    server.set(keys.record(made.call_id), forged)
    portal.use(settings)  # a process that knows nothing of the call but its id
    with pytest.raises(SignatureError, match=r"does not carry a valid signature.*not opened.*same QSERVE_SECRET_KEY"):
        serve.get_response(made.request_id).result(timeout_s=5)
    gate.open.remote("forged record").result(timeout_s=5)


def test_a_forged_application_is_left_out_and_the_others_go_on(echo, settings, server):
    """Junk among the applications must not stop the autoscaler from looking after the good ones."""
    names = ClusterKeys(settings.namespace)
    forged = seal_control(b"{}", ring_of("wrong").signer(Direction.CONTROL, names.scope("app", "forged")))
    unreadable = seal_control(b"{}", ring_of("right").signer(Direction.CONTROL, names.scope("app", "newer")))
    bad: dict[str | bytes, bytes] = {"junk": b"junk", "forged": forged, "newer": unreadable, b"\xff": b"junk"}
    server.hset(names.apps, mapping=bad)
    try:
        again = serve.run(Echo.options(num_replicas=2).bind(), name="echo", timeout_s=10)
        assert again.remote(1).result(timeout_s=5) == 1
        assert {"echo"} <= serve.status().applications.keys()
    finally:
        server.hdel(names.apps, *bad)


# Wrong secrets


def test_a_client_with_the_wrong_secret_cannot_look_anything_up(echo, settings):
    """A web server whose secret was mistyped hears of it with its first line."""
    portal.use(replace(settings, secrets=(OTHER_SECRET,)))
    try:
        with pytest.raises(SignatureError, match=r"signed with key \w{8}.*Set QSERVE_SECRET_KEY to the same secret"):
            serve.get_app_handle("echo")
    finally:
        portal.use(settings)


@pytest.mark.parametrize("chosen", [(OTHER_SECRET,), ()], ids=["another", "none"])
def test_a_call_with_the_wrong_secret_is_refused_unopened(echo, settings, server, keys, canary, chosen):
    """The replica does not open the call, and says so; the caller is not left waiting."""
    portal.use(replace(settings, secrets=chosen))
    try:
        handle: DeploymentHandle[Any] = DeploymentHandle("Echo", "echo")
        with pytest.raises((SignatureError, CallRejected), match="QSERVE_SECRET_KEY"):
            handle.remote(Canary(canary)).result(timeout_s=5)
    finally:
        portal.use(settings)
    assert echo.remote(1).result(timeout_s=5) == 1


def test_a_deploy_with_the_wrong_secret_is_refused_and_harms_nobody(echo, settings):
    """It must neither take over an application of that name nor wait for a minute."""
    portal.use(replace(settings, secrets=(OTHER_SECRET,)))
    try:
        with pytest.raises(SignatureError, match="QSERVE_SECRET_KEY"):
            serve.run(Echo.bind(), name="echo", timeout_s=10)
        with pytest.raises(SignatureError, match="QSERVE_SECRET_KEY"):
            serve.run(Echo.bind(), name="new", timeout_s=10)
    finally:
        portal.use(settings)
    assert echo.remote(1).result(timeout_s=5) == 1
    assert serve.status().applications["echo"].status == "RUNNING"


def test_a_worker_with_the_wrong_secret_does_not_join(cluster, settings, capfd):
    """It could run nothing; replicas would be sent to it and fail."""
    stranger = cluster.start_worker(replace(settings, secrets=(OTHER_SECRET,)))

    assert stranger.wait(15) == 77
    assert "Set QSERVE_SECRET_KEY to the same secret" in capfd.readouterr().err
    assert len(serve.status().nodes) == 1


def test_a_cluster_whose_worker_has_the_wrong_secret_says_so(settings):
    """A worker that was there first: the deploy fails with the reason, within seconds."""
    mine = replace(settings, namespace="wrong-worker")
    portal.use(mine)
    mixed = Cluster(mine)
    mixed.start_worker(replace(mine, secrets=(OTHER_SECRET,)))
    try:
        eventually(lambda: len(serve.status().nodes) == 1)
        mixed.start_autoscaler()
        with pytest.raises(
            serve.errors.DeployFailed, match=r"signed with key.*Set QSERVE_SECRET_KEY to the same secret"
        ):
            serve.run(Echo.bind(), timeout_s=15)
    finally:
        mixed.stop()
        portal.use(settings)
