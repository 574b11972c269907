"""A cluster played by records: it applies what the plan decides, and its nodes do what they are told, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qserve.config import DeploymentConfig
from qserve.controller.plan import (
    Action,
    Assign,
    BuryNode,
    Close,
    Forget,
    Observed,
    SetStatus,
    Unassign,
    plan,
)
from qserve.spec import (
    ApplicationStatusInfo,
    AppSpec,
    Assignment,
    DeploymentSpec,
    DeploymentStatusInfo,
    NodeRecord,
    ReplicaRecord,
    ReplicaState,
)

ENDED = (ReplicaState.FAILED, ReplicaState.DIED)


def spec(
    name: str = "Echo", version: str = "v1", replicas: int = 2, app: str = "app", **options: Any
) -> DeploymentSpec:
    """A deployment as an application wants it."""
    config = DeploymentConfig(**options)
    return DeploymentSpec(app=app, name=name, version=version, config=config, python="3.11.7", replicas=replicas)


def node(node_id: str, **fields: Any) -> NodeRecord:
    """A worker with the given fields of its record."""
    base: dict[str, Any] = {"pid": 1, "python": "3.11.7", "qserve": "0.1.0", "protocol": 1, "resources": {}}
    return NodeRecord(node_id=node_id, host=node_id, **{**base, **fields})


@dataclass
class World:
    """All that a controller sees. `broken` versions do not start; calls wait in `stuck` queues; nodes obey."""

    apps: dict[str, AppSpec] = field(default_factory=dict)
    statuses: dict[str, ApplicationStatusInfo] = field(default_factory=dict)
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    lapsed: dict[str, NodeRecord] = field(default_factory=dict)
    replicas: dict[str, ReplicaRecord] = field(default_factory=dict)
    assignments: dict[str, Assignment] = field(default_factory=dict)
    retired: set[tuple[str, str]] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    stuck: set[tuple[str, str]] = field(default_factory=set)
    closed: list[Close] = field(default_factory=list)
    now: float = 1000.0
    deploys: int = 0

    @classmethod
    def of(cls, *node_ids: str) -> World:
        """A cluster with these nodes."""
        return cls(nodes={node_id: node(node_id) for node_id in node_ids})

    # What users and fate do

    def deploy(self, *specs: DeploymentSpec) -> None:
        """Want an application of these deployments."""
        self.deploys += 1
        name = specs[0].app
        self.apps[name] = AppSpec(
            name=name,
            ingress=specs[-1].name,
            deployments=specs,
            deployed_at_s=self.now,
            deploy_id=f"deploy {self.deploys}",
        )

    def delete(self, app: str = "app") -> None:
        """Want the application no more."""
        self.apps.pop(app, None)

    def lose(self, node_id: str) -> None:
        """The node's lease lapses."""
        self.lapsed[node_id] = self.nodes.pop(node_id)

    def drain(self, node_id: str) -> None:
        """The node takes no new replicas."""
        self.nodes[node_id] = self.nodes[node_id].model_copy(update={"draining": True})

    def withdraw(self, node_id: str) -> None:
        """The node has drained: it takes its record and its assignments along, its replicas forgot theirs."""
        del self.nodes[node_id]
        self.assignments = {r: a for r, a in self.assignments.items() if a.node_id != node_id}
        self.replicas = {r: record for r, record in self.replicas.items() if record.node_id != node_id}

    def end(self, replica_id: str, state: ReplicaState = ReplicaState.DIED, message: str = "killed") -> None:
        """The replica's process ends unasked."""
        self.replicas[replica_id] = self.replicas[replica_id].model_copy(update={"state": state, "message": message})

    # What the controller does

    def decide(self, now: float | None = None) -> list[Action]:
        """What the plan wants now; nothing is applied."""
        self.retired -= {(app.name, wanted.name) for app in self.apps.values() for wanted in app.deployments}
        seen = Observed(
            statuses=dict(self.statuses),
            nodes=dict(self.nodes),
            lapsed=dict(self.lapsed),
            replicas=dict(self.replicas),
            assignments=dict(self.assignments),
            retired=frozenset(self.retired),
            stuck=frozenset(self.stuck),
        )
        return plan(dict(self.apps), seen, self.now if now is None else now)

    def turn(self) -> list[Action]:
        """One turn of the leader."""
        actions = self.decide()
        for action in actions:
            self._apply(action)
        return actions

    def _apply(self, action: Action) -> None:
        if isinstance(action, Assign):
            assert action.assignment.replica_id not in self.assignments
            self.assignments[action.assignment.replica_id] = action.assignment
        elif isinstance(action, Unassign):
            del self.assignments[action.assignment.replica_id]
            if action.forget:
                self.replicas.pop(action.assignment.replica_id, None)
        elif isinstance(action, Forget):
            self.replicas.pop(action.replica_id, None)
        elif isinstance(action, BuryNode):
            self._bury(action)
        elif isinstance(action, Close):
            self.closed.append(action)
            self.stuck.discard((action.app, action.deployment))
            if action.last:
                self.retired.add((action.app, action.deployment))
        else:
            self._show(action)

    def _show(self, action: SetStatus) -> None:
        if action.status is None:
            del self.statuses[action.app]
        else:
            self.statuses[action.app] = action.status

    def _bury(self, action: BuryNode) -> None:
        del self.lapsed[action.node_id]
        for lost in action.assignments:
            del self.assignments[lost.replica_id]
            self.replicas.pop(lost.replica_id, None)

    # What the nodes do

    def work(self) -> bool:
        """One step of every replica: absent, starting, running or failed; stopping, gone. Whether any took one."""
        steps = {r: self._step(r, a) for r, a in self.assignments.items() if a.node_id in self.nodes}
        leaving = [r for r, record in self.replicas.items() if r not in self.assignments and self._leaves(record)]
        for replica_id in leaving:
            record = self.replicas[replica_id]
            if record.state is ReplicaState.STOPPING:
                del self.replicas[replica_id]
            else:
                self.replicas[replica_id] = record.model_copy(update={"state": ReplicaState.STOPPING})
        return any(steps.values()) or bool(leaving)

    def _leaves(self, record: ReplicaRecord) -> bool:
        return record.node_id in self.nodes and record.state not in ENDED

    def _step(self, replica_id: str, assignment: Assignment) -> bool:
        record = self.replicas.get(replica_id)
        if record is None:
            self.replicas[replica_id] = ReplicaRecord(**assignment.model_dump(), state=ReplicaState.STARTING, pid=1)
            return True
        if record.state is not ReplicaState.STARTING:
            return False
        if assignment.version in self.broken:
            self.end(replica_id, ReplicaState.FAILED, f"ValueError: {assignment.version} is broken")
        else:
            self.replicas[replica_id] = record.model_copy(update={"state": ReplicaState.RUNNING})
        return True

    def settle(self, turns: int = 100, turn: Callable[[World], list[Action]] | None = None) -> None:
        """Turn and work, a second at a time, until nothing happens any more and no backoff is waited for."""
        for _ in range(turns):
            acted = self.turn() if turn is None else turn(self)
            worked = self.work()
            self.now += 1.0
            if not acted and not worked and not self.decide(now=self.now + 60):
                return
        raise AssertionError(f"not quiet after {turns} turns: {self.decide()}")

    # What is there

    def running(self, deployment: str = "Echo", app: str = "app") -> Counter[str]:
        """How many replicas run and are wanted, by version."""
        return Counter(
            a.version
            for r, a in self.assignments.items()
            if (a.app, a.deployment) == (app, deployment) and self.state(r) is ReplicaState.RUNNING
        )

    def assigned(self, deployment: str = "Echo", app: str = "app") -> list[Assignment]:
        """The replicas that nodes are told to run."""
        return [a for a in self.assignments.values() if (a.app, a.deployment) == (app, deployment)]

    def state(self, replica_id: str) -> ReplicaState | None:
        """The replica's state, None as long as its node has not taken it up."""
        record = self.replicas.get(replica_id)
        return None if record is None else record.state

    def info(self, deployment: str = "Echo", app: str = "app") -> DeploymentStatusInfo:
        """The deployment's line in `serve.status()`."""
        return self.statuses[app].deployments[deployment]

    def shown(self, deployment: str = "Echo", app: str = "app") -> tuple[str, str, str]:
        """Status of the application, of the deployment, and the trigger."""
        info = self.info(deployment, app)
        return (str(self.statuses[app].status), str(info.status), str(info.status_trigger))
