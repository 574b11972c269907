"""Desired and observed state: what is written is read back, what was tampered with is refused, who is silent lapses."""

from __future__ import annotations

import pytest

from qserve.config import DeploymentConfig
from qserve.errors import ApplicationNotFound, CallRejected, SignatureError
from qserve.spec import (
    ApplicationStatus,
    ApplicationStatusInfo,
    AppSpec,
    Assignment,
    DeploymentSpec,
    NodeRecord,
    ReplicaRecord,
    ReplicaState,
)
from qserve.store import calls
from qserve.store.state import Change, ClusterState
from qserve.wire.keys import deployment_keys
from qserve.wire.messages import seal_control
from qserve.wire.signing import Direction, KeyRing
from tests.store.until import until

ECHO = DeploymentSpec(
    app="shop", name="Echo", version="v1", config=DeploymentConfig(max_queued_requests=7), python="3.11", replicas=2
)
SHOP = AppSpec(name="shop", ingress="Echo", deployments=(ECHO,), deployed_at_s=1.0, deploy_id="d1")
NODE = NodeRecord(node_id="n1", host="h", pid=1, python="3.11", qserve="0", protocol=1, resources={"CPU": 2.0})
HOSTED = Assignment(replica_id="r1", node_id="n1", app="shop", deployment="Echo", version="v1")
REPLICA = ReplicaRecord(**HOSTED.model_dump(), state=ReplicaState.RUNNING, pid=7)


@pytest.fixture
def state(link, settings, ring):
    """The namespace's state."""
    return ClusterState(link, settings.namespace, ring)


# Desired state


@pytest.mark.leaves(code=1)
async def test_a_deployed_application_is_wanted_and_takes_calls(state, settings):
    """Calls may be put before the first replica is up: they wait for it."""
    await state.deploy(SHOP, {"v1": b"pickled"})

    assert await state.app("shop") == SHOP
    assert await state.wanted() == {"shop": SHOP}
    assert await state.code("v1") == b"pickled"
    keys = deployment_keys(settings.namespace, "shop", "Echo")
    assert await state.link.call("EXISTS", keys.calls, keys.front) == 2


@pytest.mark.leaves(code=1)
async def test_deploying_again_keeps_the_calls_that_wait(state, settings):
    """An upgrade under load loses nothing."""
    await state.deploy(SHOP, {"v1": b"pickled"})
    keys = deployment_keys(settings.namespace, "shop", "Echo")
    await state.link.call("XADD", keys.calls, "*", "c", "a call")

    await state.deploy(SHOP, {"v1": b"pickled"})

    assert await calls.depth(state.link, keys) == calls.Depth(waiting=1, running=0)
    await state.link.call("XTRIM", keys.calls, "MAXLEN", 0)


@pytest.mark.leaves(code=1)
async def test_a_deleted_application_is_not_wanted_any_more(state):
    """Deleting what is not there says so, and changes nothing."""
    await state.deploy(SHOP, {"v1": b"pickled"})

    assert await state.delete("shop")
    generation = await state.pulse([])

    assert await state.wanted() == {}
    assert not await state.delete("shop")
    assert await state.pulse([]) == generation


async def test_an_unknown_application_is_answered_with_those_there_are(state):
    """A typo in a name is found at a glance."""
    with pytest.raises(ApplicationNotFound, match=r"'ship' does not exist.*: none"):
        await state.app("ship")
    await state.deploy(SHOP, {})

    with pytest.raises(ApplicationNotFound, match=r"'ship' does not exist.*: \['shop'\]"):
        await state.app("ship")


@pytest.mark.leaves(code=2)
async def test_code_is_removed_by_its_version(state):
    """Every version that was ever deployed would stay for ever."""
    await state.deploy(SHOP, {"v1": b"one", "v2": b"two", "v3": b"three"})

    await state.drop_code(["v2"])

    assert await state.code("v1") == b"one"
    with pytest.raises(CallRejected, match="version v2 is not in Redis any more"):
        await state.code("v2")


@pytest.mark.leaves(code=1)
@pytest.mark.parametrize("position", [0, 3, 12, -1])
async def test_tampered_code_is_refused(state, server, position):
    """A replica unpickles it: whoever changed a byte of it would run code in every replica."""
    await state.deploy(SHOP, {"v1": b"pickled"})
    sealed = bytearray(server.get(state.keys.code("v1")))
    sealed[position] ^= 1
    server.set(state.keys.code("v1"), bytes(sealed))

    with pytest.raises(SignatureError):
        await state.code("v1")


@pytest.mark.leaves(code=1)
@pytest.mark.parametrize("scope", ["another namespace", "unsigned", "another secret"])
async def test_code_signed_elsewhere_is_refused(state, server, settings, scope):
    """A good signature of the wrong place is a wrong signature."""
    signers = {
        "another namespace": KeyRing(settings.secrets).signer(Direction.CONTROL, "elsewhere"),
        "unsigned": KeyRing().signer(Direction.CONTROL, settings.namespace),
        "another secret": KeyRing([b"some other secret key"]).signer(Direction.CONTROL, settings.namespace),
    }
    server.set(state.keys.code("v1"), seal_control(b"pickled", signers[scope]))

    with pytest.raises(SignatureError):
        await state.code("v1")


@pytest.mark.leaves(node_leases=1, assigned=1)
async def test_a_tampered_application_is_left_as_it_is(state, server):
    """It names the code to run and how often. Neither believed nor taken for deleted, nor in the way of the others."""
    await state.deploy(SHOP, {})
    await state.deploy(SHOP.model_copy(update={"name": "other"}), {})
    await state.announce(NODE)
    await state.record(REPLICA)
    status = ApplicationStatusInfo(status=ApplicationStatus.RUNNING)
    changes = [
        Change(state.keys.assignments("n1"), "r1", HOSTED.to_json()),
        Change(state.keys.statuses, "shop", status.to_json()),
    ]
    await state.write(changes, "test")
    sealed = server.hget(state.keys.apps, "shop").replace(b'"replicas":2', b'"replicas":9')
    server.hset(state.keys.apps, "shop", sealed)

    with pytest.raises(SignatureError):
        await state.app("shop")
    seen = await state.snapshot()

    assert set(seen.apps) == {"other"}
    assert not any((seen.statuses, seen.replicas, seen.assignments))


async def test_a_deploy_with_another_secret_than_the_leader_s_is_refused(state, link, settings):
    """Nothing that it deploys could ever run, and its calls would be refused: better said before than after."""
    stranger = ClusterState(link, settings.namespace, KeyRing([b"some other secret key"]))
    await stranger.deploy(SHOP, {})  # nobody leads yet: nobody can tell
    await state.set_seal()

    with pytest.raises(SignatureError, match="does not have the secret of the cluster"):
        await stranger.deploy(SHOP, {"v1": b"pickled"})
    await state.deploy(SHOP, {})


# Observed state


@pytest.mark.leaves(node_leases=1)
async def test_a_node_that_announces_itself_is_there(state):
    """It is given replicas from now on."""
    await state.announce(NODE)

    assert await state.nodes() == ({"n1": NODE}, {})


@pytest.mark.leaves(node_leases=1)
async def test_a_node_that_falls_silent_lapses_and_comes_back(state, server):
    """Its replicas are given to others when its lease has gone; a node that was only paused joins again."""
    await state.announce(NODE)
    await state.announce(NODE.model_copy(update={"node_id": "n2"}))
    server.psetex(state.keys.node_lease("n1"), 1, "1")
    await until(lambda: not server.exists(state.keys.node_lease("n1")))

    alive, lapsed = await state.nodes()
    assert (set(alive), set(lapsed)) == ({"n2"}, {"n1"})
    assert await state.pulse(["n1", "n2"]) == (2, [False, True])

    assert not await state.renew([state.keys.node_lease("n1")])
    assert set((await state.nodes())[0]) == {"n1", "n2"}
    server.delete(state.keys.node_lease("n2"))


@pytest.mark.leaves(node_leases=1, leases=2)
async def test_a_heartbeat_renews_all_leases(state, server, settings):
    """The node's and those of its replicas, whatever they were before."""
    keys = deployment_keys(settings.namespace, "shop", "Echo")
    await state.announce(NODE)
    server.pexpire(state.keys.node_lease("n1"), 100)
    server.psetex(keys.lease("r1"), 100, "1")
    names = [state.keys.node_lease("n1"), keys.lease("r1"), keys.lease("new")]

    assert await state.renew(names)

    assert all(server.pttl(name) > 1000 for name in names)


@pytest.mark.leaves(node_leases=1)
async def test_a_server_without_memory_renews_leases(state, server, full):
    """Refused, every worker would lapse, just when the calls that they finish would free memory."""
    await state.announce(NODE)
    server.pexpire(state.keys.node_lease("n1"), 1000)
    with full():
        assert await state.renew([state.keys.node_lease("n1")])

    assert server.pttl(state.keys.node_lease("n1")) > 1000


async def test_a_node_that_withdraws_leaves_nothing(state, server):
    """A worker that was stopped is not missed, and its assignments are nobody's."""
    await state.announce(NODE)
    server.hset(state.keys.assignments("n1"), "r1", HOSTED.to_json())

    await state.withdraw("n1")

    assert await state.nodes() == ({}, {})
    assert await state.assignments("n1") == {}


async def test_replicas_are_shown_and_forgotten(state):
    """The status shows what each worker says of its replicas."""
    await state.record(REPLICA)
    assert (await state.snapshot()).replicas == {"r1": REPLICA}

    await state.forget("r1")
    assert (await state.snapshot()).replicas == {}


@pytest.mark.leaves(node_leases=1, assigned=2, code=1)
async def test_a_snapshot_holds_all_that_the_leader_decides_on(state, server):
    """Also the assignments of a node that lapsed: they are to be given to others."""
    lost = HOSTED.model_copy(update={"replica_id": "r2", "node_id": "n2"})
    status = ApplicationStatusInfo(status=ApplicationStatus.RUNNING, deploy_id="d1")
    await state.deploy(SHOP, {"v1": b"pickled"})
    await state.announce(NODE)
    await state.announce(NODE.model_copy(update={"node_id": "n2"}))
    server.delete(state.keys.node_lease("n2"))
    await state.record(REPLICA)
    changes = [
        Change(state.keys.assignments("n1"), "r1", HOSTED.to_json()),
        Change(state.keys.assignments("n2"), "r2", lost.to_json()),
        Change(state.keys.statuses, "shop", status.to_json()),
    ]
    await state.write(changes, "test")

    seen = await state.snapshot()

    assert (seen.apps, seen.statuses, seen.replicas) == ({"shop": SHOP}, {"shop": status}, {"r1": REPLICA})
    assert (set(seen.nodes), set(seen.lapsed)) == ({"n1"}, {"n2"})
    assert seen.assignments == {"r1": HOSTED, "r2": lost}


async def test_an_empty_namespace_has_an_empty_snapshot(state):
    """The first controller of a new cluster starts on nothing."""
    seen = await state.snapshot()

    assert not any((seen.apps, seen.statuses, seen.nodes, seen.lapsed, seen.replicas, seen.assignments))
    assert await state.leader() is None
    assert await state.pulse([]) == (0, [])


async def test_fields_of_a_newer_version_are_passed_over(state, server):
    """In a rolling upgrade old and new processes read each other's records."""
    newer = NODE.to_json().replace(b'"node_id"', b'"zone":"eu","node_id"')
    server.hset(state.keys.nodes, "n1", newer)

    assert await state.nodes() == ({}, {"n1": NODE})


@pytest.mark.leaves(node_leases=1, assigned=1)
async def test_records_that_cannot_be_read_are_passed_over(state, server, caplog):
    """One field of junk must not stop the autoscaler, and with it every deployment of the namespace."""
    await state.announce(NODE)
    for name in (state.keys.nodes, state.keys.replicas, state.keys.statuses, state.keys.assignments("n1")):
        server.hset(name, b"\xff", "{}")
        server.hset(name, "junk", "junk")

    seen = await state.snapshot()

    assert seen.nodes == {"n1": NODE}
    assert not any((seen.statuses, seen.replicas, seen.assignments))
    assert "is passed over, it is no NodeRecord" in caplog.text
