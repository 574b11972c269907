"""A controller's turns on a real server: woken by what happens, paced in a storm, written in one step or not at all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from qserve.config import DeploymentConfig
from qserve.controller import loop
from qserve.controller.loop import Controller
from qserve.errors import BrokerUnavailable
from qserve.spec import AppSpec, DeploymentSpec, ExitCause, ReplicaRecord, ReplicaState
from qserve.store.state import Change
from qserve.wire.keys import deployment_keys
from qserve.wire.signing import KeyRing
from tests.controller.world import node
from tests.store.queue import Queue
from tests.store.until import until


def app(replicas: int = 2, deploy_id: str = "d1", **options: object) -> AppSpec:
    """An application of one deployment."""
    config = DeploymentConfig.model_validate(options)
    spec = DeploymentSpec(app="shop", name="Echo", version="v1", config=config, python="3.11.7", replicas=replicas)
    return AppSpec(name="shop", ingress="Echo", deployments=(spec,), deployed_at_s=1.0, deploy_id=deploy_id)


@pytest.fixture
async def leader(settings) -> AsyncIterator[Controller]:
    """A controller that leads two nodes, turned by hand."""
    controller = Controller(settings, "a")
    assert await controller.lease.renew()
    for node_id in ("n1", "n2"):
        await controller.state.announce(node(node_id))
    yield controller
    await controller.drain()


async def obey(controller: Controller) -> list[ReplicaRecord]:
    """Do as workers do: record as running what is assigned. Returns the records."""
    assigned = (await controller.state.snapshot()).assignments.values()
    records = [ReplicaRecord(**a.model_dump(), state=ReplicaState.RUNNING, pid=1) for a in assigned]
    for record in records:
        await controller.state.record(record)
    return records


async def test_a_turn_writes_all_its_changes_in_one_step(leader):
    """No reader sees half a decision, and an old leader can change none of it."""
    await leader.state.deploy(app(replicas=6), {})
    before, _ = await leader.state.pulse([])
    await leader.turn()

    seen = await leader.state.snapshot()
    assert Counter(a.node_id for a in seen.assignments.values()) == {"n1": 3, "n2": 3}
    assert seen.statuses["shop"].status == "DEPLOYING"
    assert (await leader.state.pulse([]))[0] == before + 1


async def test_a_leader_whose_reign_ended_in_mid_turn_changes_nothing(leader, server, settings):
    """Its clock says that it leads still; the server knows better."""
    await leader.state.deploy(app(), {})
    successor = Controller(settings, "b")
    server.delete(leader.state.keys.leader)
    assert await successor.lease.renew()
    generation = await leader.state.pulse([])
    assert leader.lease.held
    await leader.turn()

    assert await leader.state.pulse([]) == generation
    assert (await leader.state.snapshot()).assignments == {}
    assert not leader.lease.held
    await successor.turn()
    assert len((await successor.state.snapshot()).assignments) == 2
    await successor.drain()


async def test_what_could_not_be_written_is_done_in_the_next_turn(leader, monkeypatch):
    """Redis was away for the moment of the write: nothing else will happen that would bring it up again."""
    await leader.state.deploy(app(), {})
    write, refused = leader.state.write, asyncio.Event()

    async def refuse_once(*arguments: Any, **named: Any) -> bool:
        if not refused.is_set():
            refused.set()
            raise BrokerUnavailable("away")
        written: bool = await write(*arguments, **named)
        return written

    monkeypatch.setattr(leader.state, "write", refuse_once)
    running = asyncio.create_task(leader.run())
    assigned = leader.state.keys.assignments("n1")
    try:
        await sometime(lambda: leader.state.link.call("EXISTS", assigned))
    finally:
        running.cancel()


@pytest.mark.parametrize("what", ["deploy", "replica", "node"])
async def test_what_happens_wakes_the_leader_at_once(leader, monkeypatch, what: str):
    """A second of waiting for the next turn would be felt in every deploy and after every crash."""
    await leader.state.deploy(app(), {})
    await leader.turn()
    records = await obey(leader)
    await leader.turn()
    monkeypatch.setattr(loop, "TURN_S", 600.0)
    running = asyncio.create_task(leader.run())
    try:
        generation = await settled(leader)
        if what == "deploy":
            await leader.state.deploy(app(replicas=3, deploy_id="d2"), {})
        elif what == "replica":
            await leader.state.record(records[0].model_copy(update={"state": ReplicaState.DIED, "message": "killed"}))
        else:
            await leader.state.announce(node("n1", draining=True))
        # One step further is what has happened; two, what the leader did.
        await sometime(lambda: reached(leader, generation + 2))
    finally:
        running.cancel()


async def sometime(check: Callable[[], Awaitable[object]]) -> None:
    """Wait until the check holds; at the longest ten seconds."""
    loop_ends = asyncio.get_running_loop().time() + 10
    while not await check():
        assert asyncio.get_running_loop().time() < loop_ends
        await asyncio.sleep(0.02)


async def reached(controller: Controller, generation: int) -> bool:
    """Whether so many changes were made."""
    return (await controller.state.pulse([]))[0] >= generation


async def settled(controller: Controller) -> int:
    """Wait until the controller rests. Returns the generation."""
    await until(lambda: controller._events.pipe is not None)
    before = -1
    while (generation := (await controller.state.pulse([]))[0]) != before:
        before = generation
        await asyncio.sleep(0.3)
    return before


async def test_a_storm_of_events_is_few_turns(leader, monkeypatch):
    """Fifty workers that start 400 replicas tell so one by one: the leader reads all, twenty times a second."""
    turns: list[float] = []
    turn = leader.turn

    async def counted() -> None:
        turns.append(asyncio.get_running_loop().time())
        await turn()

    monkeypatch.setattr(leader, "turn", counted)
    running = asyncio.create_task(leader.run())
    try:
        await settled(leader)
        turns.clear()
        for number in range(200):
            await leader.state.write([Change(leader.state.keys.statuses, "junk", b"%d" % number)], "node n9")
            await asyncio.sleep(0.003)
        assert len(turns) >= 2
        assert min(later - before for before, later in pairwise(turns)) >= 0.045
    finally:
        running.cancel()


async def test_a_refusal_is_tried_elsewhere_and_held_against_nobody(leader):
    """A worker knows best what it has: the deploy goes on, on the other node."""
    await leader.state.deploy(app(replicas=1), {})
    await leader.turn()
    [refused] = (await leader.state.snapshot()).assignments.values()
    record = ReplicaRecord(**refused.model_dump(), state=ReplicaState.FAILED, cause=ExitCause.REFUSED, message="full")
    await leader.state.record(record)
    await leader.turn()

    seen = await leader.state.snapshot()
    [elsewhere] = seen.assignments.values()
    assert elsewhere.node_id != refused.node_id
    assert refused.replica_id not in seen.replicas
    assert seen.statuses["shop"].deployments["Echo"].failures == 0


async def test_the_replica_that_holds_no_calls_goes_first(leader, settings):
    """The queue knows who is busy."""
    await leader.state.deploy(app(replicas=2), {})
    await leader.turn()
    records = await obey(leader)
    busy, idle = (record.replica_id for record in records)
    keys = deployment_keys(settings.namespace, "shop", "Echo")
    queue = Queue(leader.state.link, KeyRing(settings.secrets), keys)
    await queue.put(1, 2)
    assert len(await queue.claim(busy)) == 2
    await leader.turn()
    await leader.state.deploy(app(replicas=1, deploy_id="d2"), {})
    await leader.turn()

    assert set((await leader.state.snapshot()).assignments) == {busy}
    assert idle != busy
