"""A scaler on a real server, with deployments, replicas and a clock that a test sets; what it decides is written."""

from __future__ import annotations

from typing import Any

from qserve.config import AutoscalingConfig, DeploymentConfig
from qserve.controller.scaler import Scaled, Scaler
from qserve.spec import AppSpec, Assignment, Decision, DeploymentSpec, ReplicaRecord, ReplicaState, ScalingRecord
from qserve.store.calls import open_queue
from qserve.store.link import Link
from qserve.store.snapshot import RecordHash, Snapshot
from qserve.store.state import ClusterState
from qserve.wire.keys import DeploymentKeys, deployment_keys
from qserve.wire.signing import KeyRing
from tests.store.queue import Queue

# Delays with which a test sees a decision in a few turns.
QUICK: dict[str, Any] = {
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 10.0,
    "downscale_to_zero_delay_s": 10.0,
    "look_back_period_s": 1.0,
}


def spec(name: str = "Echo", app: str = "app", *, paused: bool = False, **scaling: Any) -> DeploymentSpec:
    """An autoscaled deployment."""
    config = DeploymentConfig(
        autoscaling_config=AutoscalingConfig(**({"min_replicas": 1, "max_replicas": 20} | scaling))
    )
    begins = config.first_replicas
    return DeploymentSpec(
        app=app, name=name, version="v1", config=config, python="3.11.7", replicas=begins, paused=paused
    )


class Stage:
    """`turn()` is a turn of the leader as far as it scales. Replicas are those that the test says run."""

    def __init__(self, link: Link, namespace: str) -> None:
        self.state = ClusterState(link, namespace, KeyRing())
        self.scaler = Scaler(self.state)
        self.apps: dict[str, AppSpec] = {}
        self.replicas: dict[str, ReplicaRecord] = {}
        self.assignments: dict[str, Assignment] = {}
        self.now = 1_700_000_000.0
        self._deploys = 0

    def keys(self, name: str = "Echo", app: str = "app") -> DeploymentKeys:
        """The keys of a deployment."""
        return deployment_keys(self.state.keys.namespace, app, name)

    def queue(self, name: str = "Echo", app: str = "app") -> Queue:
        """A deployment's queue."""
        return Queue(self.state.link, KeyRing(), self.keys(name, app))

    # What happens

    async def deploy(self, *specs: DeploymentSpec, fixed: bool = False) -> None:
        """Want an application of these."""
        self._deploys += 1
        app = specs[0].app
        self.apps[app] = AppSpec(
            name=app,
            ingress=specs[0].name,
            deployments=specs,
            deployed_at_s=self.now,
            deploy_id=f"deploy {self._deploys}",
            fixed=fixed,
        )
        for each in specs:
            await open_queue(await self.state.link.ready(), self.keys(each.name, app))

    def run(self, count: int, name: str = "Echo", app: str = "app", state: ReplicaState = ReplicaState.RUNNING) -> None:
        """So many replicas are there, all in this state."""
        for replica_id in [r for r, a in self.assignments.items() if (a.app, a.deployment) == (app, name)][count:]:
            del self.assignments[replica_id], self.replicas[replica_id]
        for number in range(count):
            assignment = Assignment(
                replica_id=f"{name}-{number}", node_id="node", app=app, deployment=name, version="v1"
            )
            self.assignments[assignment.replica_id] = assignment
            self.replicas[assignment.replica_id] = ReplicaRecord(**assignment.model_dump(), state=state)

    async def turn(self, after_s: float = 1.0) -> Scaled:
        """One turn, so much later; what it wants written is written."""
        scaled = await self.decide(after_s)
        if scaled.changes:
            assert await self.state.write(scaled.changes, "test")
        return scaled

    async def decide(self, after_s: float = 1.0) -> Scaled:
        """What it would do, so much later; nothing is written."""
        self.now += after_s
        seen = Snapshot(
            apps=dict(self.apps),
            statuses={},
            nodes={},
            lapsed={},
            replicas=dict(self.replicas),
            assignments=dict(self.assignments),
        )
        return await self.scaler.turn(seen, self.now)

    async def target(self, after_s: float = 1.0, name: str = "Echo", app: str = "app") -> int:
        """What the deployment's target is after a turn."""
        return (await self.turn(after_s)).targets[app, name]

    # What stands in Redis

    async def records(self) -> dict[str, ScalingRecord]:
        """What is remembered."""
        return RecordHash(ScalingRecord).read(await self.state.link.call("HGETALL", self.state.keys.scaling))

    async def decisions(self, name: str = "Echo", app: str = "app") -> list[Decision]:
        """What was decided, newest first."""
        raws = await self.state.link.call("LRANGE", self.state.keys.decisions(app, name), 0, -1)
        return [Decision.model_validate_json(raw) for raw in raws]
