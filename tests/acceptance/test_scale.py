"""A large cluster, played by records on a real server: a turn is short, and idle costs next to nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from statistics import median

import pytest
import redis

import qserve as serve
from qserve.config import HEARTBEAT_S, PROTOCOL_VERSION, DeploymentConfig
from qserve.controller.loop import TURN_S, Controller
from qserve.spec import AppSpec, DeploymentSpec, NodeRecord, ReplicaRecord, ReplicaState
from qserve.store.state import Change, ClusterState
from tests.acceptance.ledger import Clerk
from tests.support.cluster import eventually

NODES, APPS, REPLICAS = 50, 40, 500
# Of five deployments of each application; 200 deployments, 500 replicas.
NUMBERS = ((2, 2, 2, 3, 3), (2, 3, 2, 3, 3))
IDLE_S = 6.0


@pytest.fixture
async def controller(settings) -> AsyncIterator[Controller]:
    """A controller that leads, in this process, turned by hand."""
    leading = Controller(settings, "by-hand")
    assert await leading.lease.renew()
    yield leading
    await leading.drain()


async def fill(state: ClusterState) -> None:
    """50 workers with their leases, and 200 deployments that are wanted."""
    for number in range(NODES):
        record = NodeRecord(
            node_id=f"n{number}",
            host=f"host-{number}",
            pid=1,
            python="3.11.7",
            qserve="0",
            protocol=PROTOCOL_VERSION,
            resources={"num_cpus": 64.0, "memory": 2.0**38},
        )
        await state.announce(record)
    for number in range(APPS):
        specs = tuple(
            DeploymentSpec(
                app=f"app{number}",
                name=f"D{index}",
                version="v1",
                config=DeploymentConfig(),
                python="3.11.7",
                replicas=replicas,
            )
            for index, replicas in enumerate(NUMBERS[number % 2])
        )
        app = AppSpec(name=f"app{number}", ingress="D0", deployments=specs, deployed_at_s=1.0, deploy_id="d1")
        await state.deploy(app, {})


async def obey(state: ClusterState) -> list[ReplicaRecord]:
    """Do what 50 workers do that are told to run replicas: record that they run."""
    assigned = (await state.snapshot()).assignments.values()
    records = [
        ReplicaRecord(**assignment.model_dump(), state=ReplicaState.RUNNING, pid=number)
        for number, assignment in enumerate(assigned)
    ]
    await state.write([Change(state.keys.replicas, r.replica_id, r.to_json()) for r in records], "replica all")
    return records


async def timed_turn(controller: Controller) -> float:
    """One turn; how long it took, in seconds."""
    began = time.perf_counter()
    await controller.turn()
    return time.perf_counter() - began


async def renew(state: ClusterState, stop: asyncio.Event, sent: list[int]) -> None:
    """Renew the leases of all nodes, as their workers do; count the commands."""
    while not stop.is_set():
        for number in range(NODES):
            await state.renew([state.keys.node_lease(f"n{number}")])
            sent[0] += 1
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await stop.wait()
        except TimeoutError:
            continue


def commands(server: redis.Redis) -> int:
    """How many commands the server has run, those within scripts counted."""
    return sum(int(stats["calls"]) for stats in server.info("commandstats").values())


async def test_a_turn_of_a_large_cluster_is_short(controller):
    """200 deployments, 500 replicas, 50 workers: what happens is acted on within a tenth of a second."""
    state = controller.state
    await fill(state)
    first = await timed_turn(controller)
    records = await obey(state)
    assert len(records) == REPLICAS
    await controller.turn()
    assert {status.status for status in (await state.statuses()).values()} == {"RUNNING"}
    await controller.turn()

    turns = []
    for number in range(9):
        await state.record(records[number].model_copy(update={"state": ReplicaState.DIED, "message": "killed"}))
        turns.append(await timed_turn(controller))
    replaced = (await state.snapshot()).assignments
    assert not {record.replica_id for record in records[:9]} & replaced.keys()
    assert median(turns) < 0.1, turns
    assert first < 0.5, "all 500 replicas are placed in one turn, which is one write"


async def test_a_quiet_turn_of_a_large_cluster_is_one_command(controller, server):
    """The leader looks each second; that must not be a load for Redis, nor for its own host."""
    state = controller.state
    await fill(state)
    await controller.turn()
    await obey(state)
    while await changes(controller):
        pass
    before = commands(server)
    for _ in range(10):
        await controller.turn()

    assert commands(server) - before <= 10 + 1  # and one INFO


async def rest(state: ClusterState) -> None:
    """Wait until nothing has changed for longer than a turn of the leader."""
    before = -1
    while (generation := (await state.pulse([]))[0]) != before:
        before = generation
        await asyncio.sleep(1.5 * TURN_S)


async def changes(controller: Controller) -> bool:
    """Take a turn. Whether it changed anything."""
    before, _ = await controller.state.pulse([])
    await controller.turn()
    return (await controller.state.pulse([]))[0] != before


async def test_an_idle_cluster_sends_few_commands(cluster, server, settings, tmp_path):
    """An autoscaler, three workers with replicas, 50 more workers' leases: under three commands a second for each."""
    cluster.start_worker()
    cluster.start_worker()
    eventually(lambda: len(serve.status().nodes) == 3)
    await asyncio.to_thread(serve.run, Clerk.options(num_replicas=3).bind(str(tmp_path / "ledger")))
    controller = Controller(settings, "never-runs")  # only for its connection
    state, stop, sent = controller.state, asyncio.Event(), [0]
    for number in range(NODES):
        record = NodeRecord(
            node_id=f"n{number}", host="h", pid=1, python="3", qserve="0", protocol=PROTOCOL_VERSION, resources={}
        )
        await state.announce(record)
    renewing = asyncio.create_task(renew(state, stop, sent))
    await rest(state)

    before, ours, began = commands(server), sent[0], time.monotonic()
    await asyncio.sleep(IDLE_S)  # what is measured is time
    passed_s = time.monotonic() - began
    by_processes = commands(server) - before - (sent[0] - ours)
    stop.set()
    await renewing
    for number in range(NODES):
        await state.withdraw(f"n{number}")
    await controller.drain()
    processes = len(cluster.workers) + len(cluster.autoscalers)
    assert by_processes / passed_s / processes < 3
