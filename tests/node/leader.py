"""The leading controller, played by a test: it deploys and assigns by hand, and reads what the worker shows."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from qserve.client.handle import DeploymentHandle
from qserve.config import Settings
from qserve.deployment import Application
from qserve.graph import flatten
from qserve.node.agent import Agent
from qserve.node.resources import describe
from qserve.spec import Assignment, DeploymentSpec, ReplicaRecord, ReplicaState
from qserve.store.state import Change, ClusterState
from tests.store.until import until

APP = "app"


class Leader:
    """One application, one worker in this process, and replicas in processes of their own."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.node_id = agent.record.node_id
        self.state: ClusterState = agent.state
        self.seen: dict[str, list[ReplicaRecord]] = {}
        self.specs: dict[str, DeploymentSpec] = {}

    async def deploy(self, app: Application, *, paused: bool = False) -> DeploymentSpec:
        """Want this application. Returns its deployment, of which it has one."""
        flat = flatten(app, name=APP, deploy_id=secrets.token_hex(4), now_s=time.time(), route_prefix=None)
        (spec,) = (spec.model_copy(update={"paused": paused}) for spec in flat.spec.deployments)
        await self.state.deploy(flat.spec.model_copy(update={"deployments": (spec,)}), flat.code)
        self.specs[spec.name] = spec
        return spec

    async def assign(self, spec: DeploymentSpec, replica_id: str = "") -> str:
        """Have the worker host a replica, or take over the configuration of `spec`. Returns the replica's id."""
        replica_id = replica_id or f"{spec.name}-{secrets.token_hex(4)}"
        assignment = Assignment(
            replica_id=replica_id,
            node_id=self.node_id,
            app=spec.app,
            deployment=spec.name,
            version=spec.version,
            config_version=spec.config_version,
            resources=spec.config.resources,
        )
        await self._write(replica_id, assignment.to_json())
        return replica_id

    async def unassign(self, replica_id: str) -> None:
        """Want a replica gone."""
        await self._write(replica_id, None)

    async def host(self, app: Application, *, paused: bool = False) -> str:
        """Deploy an application and wait until one replica of it runs. Returns the replica's id."""
        replica_id = await self.assign(await self.deploy(app, paused=paused))
        await self.shows(replica_id, ReplicaState.RUNNING)
        return replica_id

    async def record(self, replica_id: str) -> ReplicaRecord | None:
        """What the worker shows of a replica now."""
        raw = await self.state.link.call("HGET", self.state.keys.replicas, replica_id)
        return None if raw is None else ReplicaRecord.model_validate_json(raw)

    async def shows(self, replica_id: str, *states: ReplicaState, within_s: float = 15.0) -> ReplicaRecord:
        """Wait until a replica is shown in one of these states; all that was shown before is kept in `seen`."""

        def arrived(record: ReplicaRecord) -> bool:
            return record.state in states

        return await self.finds(replica_id, arrived, within_s=within_s)

    async def finds(
        self, replica_id: str, what: Callable[[ReplicaRecord], object], within_s: float = 15.0
    ) -> ReplicaRecord:
        """Wait until `what` holds of a replica's record."""
        deadline = asyncio.get_running_loop().time() + within_s
        seen = self.seen.setdefault(replica_id, [])
        while True:
            record = await self.record(replica_id)
            if record is not None and (not seen or seen[-1] != record):
                seen.append(record)
            if record is not None and what(record):
                return record
            assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s; shown was {seen}"
            await asyncio.sleep(0.005)

    async def has_left(self, replica_id: str, within_s: float = 15.0) -> None:
        """Wait until nothing of a replica is left, as it was asked to leave."""
        await until(lambda: replica_id not in self.agent._children, within_s=within_s)
        assert await self.record(replica_id) is None

    async def node_of(self, pid: int) -> str:
        """The node of another worker's process, as soon as it has joined."""
        async with asyncio.timeout(15):
            while True:
                alive, _ = await self.state.nodes()
                if found := [node_id for node_id, node in alive.items() if node.pid == pid]:
                    return found[0]
                await asyncio.sleep(0.01)

    def handle(self, deployment: str) -> DeploymentHandle[Any]:
        """A caller's handle of a deployment."""
        return DeploymentHandle(deployment, APP)

    async def _write(self, replica_id: str, value: bytes | None) -> None:
        change = Change(self.state.keys.assignments(self.node_id), replica_id, value)
        await self.state.write([change], f"assign {self.node_id}")


@asynccontextmanager
async def leading(settings: Settings, **resources: float) -> AsyncIterator[Leader]:
    """A leader of one worker, which offers these resources."""
    agent = Agent(settings, describe(resources={"num_cpus": 100.0, **resources}))
    running = asyncio.create_task(agent.run())
    try:
        await until(lambda: agent.has_joined or running.done())
        yield Leader(agent)
    finally:
        await agent.drain(0.0)
        await asyncio.wait_for(running, 5)
