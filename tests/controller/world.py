"""A cluster played by records: it applies what the plan decides, and its nodes do what they are told, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qserve.config import PROTOCOL_VERSION, DeploymentConfig
from qserve.controller.actions import (
    Action,
    Assign,
    Avoid,
    BuryNode,
    Close,
    Decided,
    Forget,
    Observed,
    Reconfigure,
    SetStatus,
    Unassign,
)
from qserve.controller.placement import Key, Setback
from qserve.controller.plan import plan
from qserve.spec import (
    ApplicationStatusInfo,
    AppSpec,
    Assignment,
    DeploymentSpec,
    DeploymentStatusInfo,
    ExitCause,
    NodeRecord,
    ReplicaRecord,
    ReplicaState,
)

ENDED = (ReplicaState.FAILED, ReplicaState.DIED)


def spec(
    name: str = "Echo", version: str = "v1", replicas: int = 2, app: str = "app", **options: Any
) -> DeploymentSpec:
    """A deployment as an application wants it; its other options as they stand in the decorator."""
    config = DeploymentConfig(**options)
    return DeploymentSpec(app=app, name=name, version=version, config=config, python="3.11.7", replicas=replicas)


def node(node_id: str, **fields: Any) -> NodeRecord:
    """A worker with the given fields of its record."""
    base: dict[str, Any] = {"pid": 1, "python": "3.11.7", "qserve": "0.1.0", "protocol": PROTOCOL_VERSION}
    base["resources"] = {"num_cpus": 1000.0}
    return NodeRecord(node_id=node_id, host=node_id, **{**base, **fields})


@dataclass
class World:
    """All that a controller sees; nodes obey.

    broken   versions that do not start
    bad      config_versions that no replica can take over
    hidden   CPUs of a node that something else has, of which only the node itself knows
    stuck    queues in which calls wait
    """

    apps: dict[str, AppSpec] = field(default_factory=dict)
    statuses: dict[str, ApplicationStatusInfo] = field(default_factory=dict)
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    lapsed: dict[str, NodeRecord] = field(default_factory=dict)
    replicas: dict[str, ReplicaRecord] = field(default_factory=dict)
    assignments: dict[str, Assignment] = field(default_factory=dict)
    retired: set[tuple[str, str]] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    hidden: dict[str, float] = field(default_factory=dict)
    targets: dict[Key, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    setbacks: dict[tuple[str, str, str], Setback] = field(default_factory=dict)
    stuck: set[tuple[str, str]] = field(default_factory=set)
    closed: list[Close] = field(default_factory=list)
    now: float = 1000.0
    deploys: int = 0

    @classmethod
    def of(cls, *node_ids: str, **fields: Any) -> World:
        """A cluster with these nodes, all with these fields in their records."""
        return cls(nodes={node_id: node(node_id, **fields) for node_id in node_ids})

    # What users and fate do

    def deploy(self, *specs: DeploymentSpec, fixed: bool = False) -> None:
        """Want an application of these deployments."""
        self.deploys += 1
        name = specs[0].app
        self.apps[name] = AppSpec(
            name=name,
            ingress=specs[-1].name,
            deployments=specs,
            deployed_at_s=self.now,
            deploy_id=f"deploy {self.deploys}",
            fixed=fixed,
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

    def join(self, node_id: str, **fields: Any) -> None:
        """A worker joins, or comes back."""
        self.nodes[node_id] = node(node_id, **fields)

    def end(
        self,
        replica_id: str,
        state: ReplicaState = ReplicaState.DIED,
        message: str = "killed",
        cause: ExitCause = ExitCause.SIGNAL,
    ) -> None:
        """The replica's process ends unasked."""
        self.change(replica_id, state=state, message=message, cause=cause)

    def sicken(self, replica_id: str) -> None:
        """The replica fails its health check three times: its node has it finish what it runs, and end."""
        text, cause = "check_health() did not answer", ExitCause.HEALTH_CHECK
        self.change(replica_id, state=ReplicaState.STOPPING, message=text, cause=cause)

    def change(self, replica_id: str, **fields: Any) -> None:
        """Its node says something else of a replica."""
        self.replicas[replica_id] = self.replicas[replica_id].model_copy(update=fields)

    # What the controller does

    def decided(self, now: float | None = None) -> Decided:
        """What the plan wants now; nothing is applied."""
        self.retired -= {(app.name, wanted.name) for app in self.apps.values() for wanted in app.deployments}
        seen = Observed(
            statuses=dict(self.statuses),
            nodes=dict(self.nodes),
            lapsed=dict(self.lapsed),
            replicas=dict(self.replicas),
            assignments=dict(self.assignments),
            targets=dict(self.targets),
            retired=frozenset(self.retired),
            stuck=frozenset(self.stuck),
            held=dict(self.held),
            setbacks=dict(self.setbacks),
        )
        return plan(dict(self.apps), seen, self.now if now is None else now)

    def decide(self, now: float | None = None) -> list[Action]:
        """The actions that the plan wants now; nothing is applied."""
        return self.decided(now).actions

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
        elif isinstance(action, Reconfigure):
            assert action.assignment.replica_id in self.assignments
            self.assignments[action.assignment.replica_id] = action.assignment
        elif isinstance(action, Avoid):
            self.setbacks[action.app, action.deployment, action.node_id] = action.setback
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
        for lost in action.lost:
            self.assignments.pop(lost.replica_id, None)
            self.replicas.pop(lost.replica_id, None)

    # What the nodes do

    def work(self) -> bool:
        """One step of every replica, as its node takes it. Whether any took one."""
        steps = [self._step(a) for a in list(self.assignments.values()) if a.node_id in self.nodes]
        leaving = [r for r in list(self.replicas) if self._leaves(r)]
        for replica_id in leaving:
            record = self.replicas[replica_id]
            if record.state is not ReplicaState.STOPPING:
                self.change(replica_id, state=ReplicaState.STOPPING)
            elif record.cause is not None:
                self.change(replica_id, state=ReplicaState.DIED)
            else:
                del self.replicas[replica_id]
        return any(steps) or bool(leaving)

    def _leaves(self, replica_id: str) -> bool:
        record = self.replicas[replica_id]
        is_wanted = replica_id in self.assignments and record.state is not ReplicaState.STOPPING
        return not is_wanted and record.node_id in self.nodes and record.state not in ENDED

    def _step(self, assignment: Assignment) -> bool:
        """Absent, starting, running or failed; running, updating, running with other options or given up."""
        replica_id = assignment.replica_id
        record = self.replicas.get(replica_id)
        if record is None:
            self._start(assignment)
        elif record.state is ReplicaState.STARTING:
            if assignment.version in self.broken or record.config_version in self.bad:
                text = f"ValueError: {assignment.version} is broken"
                self.end(replica_id, ReplicaState.FAILED, text, ExitCause.START)
            else:
                self.change(replica_id, state=ReplicaState.RUNNING, started_at_s=self.now)
        elif record.state is ReplicaState.RUNNING and record.config_version != assignment.config_version:
            self.change(replica_id, state=ReplicaState.UPDATING)
        elif record.state is ReplicaState.UPDATING:
            if assignment.config_version in self.bad:
                text, cause = "ValueError: bad options", ExitCause.START
                self.change(replica_id, state=ReplicaState.STOPPING, message=text, cause=cause)
            else:
                self.change(replica_id, state=ReplicaState.RUNNING, config_version=assignment.config_version)
        else:
            return False
        return True

    def _start(self, assignment: Assignment) -> None:
        offered = dict(self.nodes[assignment.node_id].resources)
        offered["num_cpus"] = offered.get("num_cpus", 0.0) - self.hidden.get(assignment.node_id, 0.0)
        used = self.used(assignment.node_id)
        fits = all(used[name] + amount <= offered.get(name, 0.0) for name, amount in assignment.resources.items())
        record = ReplicaRecord(**assignment.model_dump(), state=ReplicaState.STARTING, pid=1)
        self.replicas[assignment.replica_id] = record
        if not fits:
            self.end(assignment.replica_id, ReplicaState.FAILED, "no room here", ExitCause.REFUSED)

    def used(self, node_id: str) -> Counter[str]:
        """What the replicas on a node take of it, those that leave included."""
        total: Counter[str] = Counter()
        for record in self.replicas.values():
            if record.node_id == node_id and record.state not in ENDED:
                total.update(record.resources)
        return total

    def settle(self, turns: int = 100, turn: Callable[[World], list[Action]] | None = None) -> None:
        """Turn and work, a second at a time, until nothing happens any more and no backoff is waited for."""
        for _ in range(turns):
            acted = self.turn() if turn is None else turn(self)
            worked = self.work()
            self.now += 1.0
            if not acted and not worked and not self.decide(now=self.now + 60):
                return
        raise AssertionError(f"not quiet after {turns} turns: {self.decide(now=self.now + 60)}")

    # What is there

    def running(self, deployment: str = "Echo", app: str = "app") -> Counter[str]:
        """How many replicas run and are wanted, by version."""
        return Counter(
            a.version
            for r, a in self.assignments.items()
            if (a.app, a.deployment) == (app, deployment)
            and self.state(r) in (ReplicaState.RUNNING, ReplicaState.UPDATING)
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
