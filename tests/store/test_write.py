"""write.lua: changes of state in one step, counted, told, and only by who leads."""

from __future__ import annotations

import pytest

from qserve.store.lease import LeaderLease
from qserve.store.state import Change, ClusterState
from tests.store.queue import Ear


@pytest.fixture
def state(link, settings, ring):
    """The namespace's state."""
    return ClusterState(link, settings.namespace, ring)


@pytest.fixture
async def leader(link, state):
    """A controller that leads."""
    lease = LeaderLease(link, state.keys, "a", lambda: 0.0)
    await lease.renew()
    return lease


async def test_all_changes_of_a_write_are_made_together(state, server):
    """A reader never sees an assignment without its replica's record gone, or the other way round."""
    changes = [
        Change(state.keys.nodes, "n1", b"one"),
        Change(state.keys.nodes, "n2", b"two"),
        Change(state.keys.replicas, "r1", b"three"),
    ]
    assert await state.write(changes, "test")

    assert server.hgetall(state.keys.nodes) == {b"n1": b"one", b"n2": b"two"}
    assert server.hgetall(state.keys.replicas) == {b"r1": b"three"}

    assert await state.write([Change(state.keys.nodes, "n1", None), Change(state.keys.replicas, "r1", None)], "test")
    assert server.hgetall(state.keys.nodes) == {b"n2": b"two"}
    assert not server.exists(state.keys.replicas)


async def test_every_write_counts_up_the_generation(state):
    """One cheap look at it tells the leader whether a turn has any work."""
    before, _ = await state.pulse([])
    await state.write([Change(state.keys.nodes, "n1", b"one")], "test")
    await state.write([], "test")

    assert (await state.pulse([]))[0] == before + 2


async def test_every_write_is_told(state, link, settings):
    """Workers and autoscalers act at once, and not at their next heartbeat."""
    heard: list[bytes] = []
    ear = Ear(link.endpoint, state.keys.events, heard.append)
    await ear.open()

    await state.write([Change(state.keys.nodes, "n1", b"one")], "node n1")
    await ear.heard()

    assert heard == [b"node n1"]
    await ear.close()


async def test_a_write_tells_all_that_it_changes_each_once(state, link):
    """A turn of the leader is one write: every worker that has something to do hears of it."""
    heard: list[bytes] = []
    ear = Ear(link.endpoint, state.keys.events, heard.append)
    await ear.open()

    await state.write([Change(state.keys.nodes, "n1", b"one")], ["assign n1", "assign n2", "assign n1", "status shop"])
    await state.write([Change(state.keys.nodes, "n1", None)], [])
    await ear.heard()

    assert heard == [b"assign n1", b"assign n2", b"status shop"]
    assert (await state.pulse([]))[0] == 2
    await ear.close()


@pytest.mark.leaves(leader=1)
async def test_the_leader_writes_under_its_term(state, leader):
    """Its holder names both the controller and the reign."""
    assert await state.write([Change(state.keys.nodes, "n1", b"one")], "test", holder=leader.holder)


@pytest.mark.leaves(leader=1)
async def test_an_ex_leader_writes_nothing(state, leader, server):
    """It was paused in the middle of a turn: what it decided then must not undo what its successor decided since."""
    old = leader.holder
    await leader.resign()
    await leader.renew()

    assert not await state.write([Change(state.keys.nodes, "n1", b"one")], "test", holder=old)

    assert not server.exists(state.keys.nodes, state.keys.generation)


async def test_nobody_writes_for_a_leader_whose_lease_lapsed(state):
    """Between two reigns nobody leads: a write under either term is refused."""
    assert not await state.write([Change(state.keys.nodes, "n1", b"one")], "test", holder="1:a")
