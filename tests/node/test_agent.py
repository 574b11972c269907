"""A worker's books when Redis is cut off, or when it leaves: what it says must arrive, what it starts must end."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Awaitable
from itertools import pairwise

import pytest
import redis

from qserve.config import DeploymentConfig, Settings
from qserve.errors import BrokerUnavailable, TransportError
from qserve.node.agent import Agent
from qserve.node.child import Child
from qserve.node.resources import describe, offered
from qserve.spec import Assignment, DeploymentSpec, ExitCause, ReplicaState
from qserve.store.state import Change
from tests.store.until import until


@pytest.fixture
async def agent(settings) -> AsyncIterator[Agent]:
    """A worker that is connected and hosts nothing."""
    made = Agent(settings, describe(resources=offered()))
    await made._link.ready()
    yield made
    await made._link.close()


@pytest.fixture
def assignment(agent) -> Assignment:
    """What a leader wants it to run."""
    node_id = agent.record.node_id
    return Assignment(replica_id="app-Echo-1", node_id=node_id, app="app", deployment="Echo", version="1")


async def test_a_state_that_was_lost_on_its_way_is_shown_with_the_next_heartbeat(agent, assignment, server):
    """A RUNNING that never arrives is a deployment that never completes, though everything runs."""
    child = child_of(agent, assignment)
    child.state = ReplicaState.RUNNING
    agent._children[assignment.replica_id] = child
    await cut_off(server, agent, agent._show(child))
    assert await shown(agent) == {}

    await agent._show_again()

    assert await shown(agent) == {"app-Echo-1": ReplicaState.RUNNING}


async def test_a_failure_that_could_not_be_told_is_told_later(agent, assignment, server):
    """Otherwise the leader waits for ever for a replica that its worker has given up."""
    with pytest.raises(TransportError):
        await cut_off(server, agent, agent._show_failure(assignment, ExitCause.START, "no such code"))
    change = Change(agent.state.keys.assignments(assignment.node_id), assignment.replica_id, assignment.to_json())
    await agent.state.write([change], "")

    await agent._turn()  # the application is not known: that is a failure, too

    assert await shown(agent) == {"app-Echo-1": ReplicaState.FAILED}


async def test_a_replica_that_has_ended_is_not_shown_as_leaving(agent, assignment):
    """The leader may take a failed replica back while its books are closed.

    A record after its last keeps the application in DELETING for ever.
    """
    child = child_of(agent, assignment)
    child.state = ReplicaState.FAILED
    child.has_ended = True

    agent._drain_child(child)
    await asyncio.gather(*agent._tasks)

    assert child.state is ReplicaState.FAILED
    assert await shown(agent) == {}


async def test_a_replica_that_leaves_is_checked_no_more(agent, assignment):
    """It may be busy with its last calls, and is not sick for that."""
    child = child_of(agent, assignment)
    child._started(ReplicaState.RUNNING, "")
    assert child._health._timer is not None

    child.drain(5.0)
    assert child._health._timer is None


async def test_a_worker_that_leaves_starts_nothing_more(agent, assignment):
    """It has asked its replicas to end already: one that starts now would hear of it from nobody."""
    change = Change(agent.state.keys.assignments(assignment.node_id), assignment.replica_id, assignment.to_json())
    await agent.state.write([change], "")
    agent._draining = True

    await agent._turn()

    assert await shown(agent) == {}
    assert agent._children == {}


async def test_a_replica_that_is_drained_before_it_is_a_process_ends_all_the_same(agent, assignment, settings):
    """A worker's TERM may come in the moment between the two."""
    ended: list[Child] = []

    async def on_exit(child: Child) -> None:
        ended.append(child)

    child = child_of(agent, assignment, on_exit)
    starting = asyncio.create_task(child.start(settings))
    await asyncio.sleep(0)  # it has begun
    child.drain(5.0)
    await starting
    await asyncio.wait_for(child.ended(), 5)

    assert ended == [child]
    assert not child.is_alive


@pytest.mark.parametrize("changed", ["app", "deployment", "version"])
async def test_a_replica_takes_over_the_configuration_of_nothing_else(agent, assignment, monkeypatch, changed):
    """Anybody who reaches Redis may write an assignment: the spec of another deployment is signed, too."""
    child = child_of(agent, assignment)
    child.state = ReplicaState.RUNNING
    other = child.spec.model_copy(update={"paused": True})
    forged = assignment.model_copy(update={changed: "other", "config_version": other.config_version})

    async def spec(_assignment: Assignment) -> DeploymentSpec:
        return other

    monkeypatch.setattr(agent, "_spec", spec)
    await agent._reconfigure(child, forged)

    assert child.assignment == assignment
    assert child.state is ReplicaState.RUNNING


async def test_a_worker_can_be_ended_while_redis_is_away(assignment, monkeypatch):
    """Nobody knows when it comes back: what waits for that must not keep a host from shutting down."""
    monkeypatch.setattr("qserve.node.agent.LEASE_S", 0.1)
    agent = Agent(Settings(redis_url="redis://127.0.0.1:1/0"), describe(resources=offered()))
    monkeypatch.setattr(agent._link, "ready", never)
    child = child_of(agent, assignment)
    agent._children[assignment.replica_id] = child
    agent._draining = True

    await asyncio.wait_for(agent._after(child), 10)

    assert agent._children == {}


async def test_a_chatty_replica_leaves_the_worker_its_turns(agent, assignment):
    """A pipe full of blank lines was read at one go: the leases lapsed meanwhile, and the leader gave the node up."""
    child = child_of(agent, assignment)
    seen: list[int] = []
    read, written = 0, 32 * 1024

    def on_line(*_line: object) -> None:
        nonlocal read
        read += 1

    child._on_line = on_line
    read_end, write_end = os.pipe()
    os.write(write_end, b"\n" * written)
    os.close(write_end)
    forwarding = asyncio.create_task(child._forward(io.FileIO(read_end)))
    while not forwarding.done():
        await asyncio.sleep(0)
        seen.append(read)

    assert read == written
    assert max(after - before for before, after in pairwise([0, *seen])) <= 100


async def never(*_args: object) -> None:
    """What a connection answers while Redis is away."""
    raise BrokerUnavailable("it is away")


def child_of(agent: Agent, assignment: Assignment, on_exit=None) -> Child:
    """A replica that has not been started."""
    spec = DeploymentSpec(app="app", name="Echo", version="1", config=DeploymentConfig(), python="3.11", replicas=1)
    return Child(
        assignment,
        spec,
        on_change=agent._changed,
        on_exit=on_exit or agent._after,
        on_line=agent._output.line,
        kills=agent._kills,
    )


async def shown(agent: Agent) -> dict[str, ReplicaState]:
    """The replicas' states, as the leader reads them."""
    return {name: record.state for name, record in (await agent.state.snapshot()).replicas.items()}


async def cut_off(server: redis.Redis, agent: Agent, work: Awaitable[None]) -> None:
    """Do the work while its connection is lost between the command and the reply."""
    server.client_pause(10_000, all=False)
    working = asyncio.ensure_future(work)
    name = f"qserve-worker-{agent.record.node_id}"
    try:
        await until(lambda: any(row["name"] == name and "b" in row["flags"] for row in server.client_list()))
        for row in server.client_list():
            if row["name"] == name:
                server.client_kill_filter(_id=row["id"])
        await working
    finally:
        server.client_unpause()
