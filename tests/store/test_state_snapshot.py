"""The leader's look at everything: one round trip, and nothing parsed or verified again that has not changed."""

from __future__ import annotations

import pytest

from qserve.store.state import Change
from tests.store.records import HOSTED, NODE, REPLICA, SHOP


@pytest.fixture
async def round_trips(state, monkeypatch):
    """Counts how often something is sent over the state's connection."""
    pipe = await state.link.ready()
    sent: list[int] = []
    flush = pipe._flush

    def counted() -> None:
        sent.append(1)
        flush()

    monkeypatch.setattr(pipe, "_flush", counted)
    return sent


@pytest.mark.leaves(node_leases=2, assigned=1)
async def test_a_snapshot_is_one_round_trip(state, round_trips):
    """With fifty nodes, one after the other would be a hundred. Nodes that it meets for the first time are a second."""
    await state.deploy(SHOP, {})
    await state.announce(NODE)
    await state.announce(NODE.model_copy(update={"node_id": "n2"}))
    await state.record(REPLICA)
    await state.write([Change(state.keys.assignments("n1"), "r1", HOSTED.to_json())], "test")

    counts = []
    for _ in range(3):
        round_trips.clear()
        seen = await state.snapshot()
        counts.append(len(round_trips))

    assert counts == [2, 1, 1]
    assert (set(seen.nodes), seen.assignments, seen.replicas) == ({"n1", "n2"}, {"r1": HOSTED}, {"r1": REPLICA})


@pytest.mark.leaves(node_leases=2)
async def test_a_node_that_joins_is_in_the_next_snapshot(state, round_trips):
    """With its lease and its assignments, for which it is asked at once."""
    await state.announce(NODE)
    await state.snapshot()
    await state.announce(NODE.model_copy(update={"node_id": "n2"}))
    round_trips.clear()

    assert set((await state.snapshot()).nodes) == {"n1", "n2"}
    assert len(round_trips) == 2


@pytest.mark.leaves(node_leases=1, assigned=1)
async def test_what_has_not_changed_is_not_read_again(state):
    """Of 500 records one changes between two turns; and a signature that was verified stays so with the same bytes."""
    await state.deploy(SHOP, {})
    await state.announce(NODE)
    await state.record(REPLICA)
    await state.record(REPLICA.model_copy(update={"replica_id": "r2"}))
    await state.write([Change(state.keys.assignments("n1"), "r1", HOSTED.to_json())], "test")
    first = await state.snapshot()
    await state.record(REPLICA.model_copy(update={"replica_id": "r2", "pid": 9}))
    second = await state.snapshot()

    assert second.apps["shop"] is first.apps["shop"]
    assert second.nodes["n1"] is first.nodes["n1"]
    assert second.assignments["r1"] is first.assignments["r1"]
    assert second.replicas["r1"] is first.replicas["r1"]
    assert second.replicas["r2"].pid == 9


async def test_a_change_behind_our_back_is_noticed(state, server):
    """What was verified once is no free pass for other bytes under the same name."""
    await state.deploy(SHOP, {})
    assert set((await state.snapshot()).apps) == {"shop"}
    sealed = server.hget(state.keys.apps, "shop").replace(b'"replicas":2', b'"replicas":9')
    server.hset(state.keys.apps, "shop", sealed)

    assert (await state.snapshot()).apps == {}


@pytest.mark.leaves(node_leases=1)
async def test_junk_is_told_once(state, server, caplog):
    """The leader looks each second: the same line each second would hide all others."""
    await state.announce(NODE)
    server.hset(state.keys.replicas, "junk", "junk")
    for _ in range(3):
        assert (await state.snapshot()).replicas == {}

    assert caplog.text.count("is passed over, it is no ReplicaRecord") == 1
