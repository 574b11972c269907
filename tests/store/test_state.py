"""Desired and observed state: what is written is read back, and who is silent lapses."""

from __future__ import annotations

import pytest

from qserve.errors import ApplicationNotFound, CallRejected
from qserve.spec import (
    ApplicationStatus,
    ApplicationStatusInfo,
)
from qserve.store import calls
from qserve.store.state import Change
from qserve.wire.keys import deployment_keys
from tests.store.records import HOSTED, NODE, REPLICA, SHOP
from tests.store.until import until

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
