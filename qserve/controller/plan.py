"""What to do next, from what is wanted and what is there. Pure: time comes in, actions go out as data.

Applied until quiet it reaches the desired state; when nothing changes it returns nothing.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from qserve.controller.placement import place, why_not
from qserve.controller.status import COMPLETED, NOTHING, fresh, has_failed, summary
from qserve.spec import (
    ApplicationStatus,
    ApplicationStatusInfo,
    AppSpec,
    Assignment,
    DeploymentSpec,
    DeploymentStatus,
    DeploymentStatusInfo,
    NodeRecord,
    ReplicaRecord,
    ReplicaState,
    StatusTrigger,
)

_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 10.0
_MOST_DOUBLINGS = 10
_GONE = frozenset({ReplicaState.FAILED, ReplicaState.DIED})


@dataclass(frozen=True, slots=True)
class Observed:
    """What is there, with (application, deployment) queues: `retired` are known to be gone, in `stuck` calls wait."""

    statuses: dict[str, ApplicationStatusInfo]
    nodes: dict[str, NodeRecord]
    lapsed: dict[str, NodeRecord]
    replicas: dict[str, ReplicaRecord]
    assignments: dict[str, Assignment]
    retired: frozenset[tuple[str, str]] = frozenset()
    stuck: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Assign:
    """A node shall run one more replica."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Unassign:
    """A node shall drain a replica. `forget` removes its record too: the process is known to be gone."""

    assignment: Assignment
    forget: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """A replica's record that belongs to nothing."""

    replica_id: str


@dataclass(frozen=True, slots=True)
class BuryNode:
    """A node lost its lease: its replicas' calls go to others, its records go."""

    node_id: str
    assignments: tuple[Assignment, ...]


class CloseReason(Enum):
    """Why nobody will take a deployment's calls, as the callers are told."""

    DELETED = "was deleted before the call ran."
    FAILED = "is unavailable because it failed to deploy. `qserve status` shows its error; the next deploy revives it."


@dataclass(frozen=True, slots=True)
class Close:
    """The waiting calls of a deployment that will not take them are to be answered.

    last  no replica is left: a deleted deployment's queue goes once it is empty
    """

    app: str
    deployment: str
    reason: CloseReason
    last: bool = False


@dataclass(frozen=True, slots=True)
class SetStatus:
    """An application's status has changed; None: the application is gone."""

    app: str
    status: ApplicationStatusInfo | None


Action: TypeAlias = Assign | Unassign | Forget | BuryNode | Close | SetStatus


def plan(desired: dict[str, AppSpec], observed: Observed, now: float) -> list[Action]:
    """The actions of one turn.

    now  seconds since the epoch
    """
    return _Turn(desired, observed, now).actions()


class _Turn:
    """One turn's bookkeeping: `assigned` is what will be assigned after the actions so far."""

    def __init__(self, desired: dict[str, AppSpec], observed: Observed, now: float) -> None:
        self.desired = desired
        self.observed = observed
        self.now = now
        self.out: list[Action] = []
        self.assigned = {r: a for r, a in observed.assignments.items() if a.node_id in observed.nodes}

    def actions(self) -> list[Action]:
        self._bury_nodes()
        self._drop_unwanted()
        for app in self.desired.values():
            self._app(app)
        for name, status in self.observed.statuses.items():
            if name not in self.desired:
                self._deleted_app(name, status)
        return self.out

    def _bury_nodes(self) -> None:
        for node_id in self.observed.lapsed:
            lost = tuple(a for a in self.observed.assignments.values() if a.node_id == node_id)
            self.out.append(BuryNode(node_id, lost))

    def _drop_unwanted(self) -> None:
        """Replicas that nobody wants, or of an old version and not serving; records of no replica that is assigned."""
        for replica_id, assignment in list(self.assigned.items()):
            app = self.desired.get(assignment.app)
            spec = None if app is None else app.deployment(assignment.deployment)
            serves = self._state(replica_id) is ReplicaState.RUNNING
            if spec is None or (assignment.version != spec.version and not serves):
                self._unassign(assignment, forget=self._has_ended(replica_id))
        known = self.observed.nodes.keys() | self.observed.lapsed.keys()
        for replica_id, record in self.observed.replicas.items():
            ended = record.state in _GONE or record.node_id not in known
            if ended and replica_id not in self.observed.assignments:
                self.out.append(Forget(replica_id))

    # One application

    def _app(self, app: AppSpec) -> None:
        before = self.observed.statuses.get(app.name, NOTHING)
        infos = {}
        for spec in app.deployments:
            info = before.deployments.get(spec.name)
            if info is None or info.version != spec.version or before.deploy_id != app.deploy_id:
                info = fresh(spec, info)
            infos[spec.name] = self._deployment(spec, info)
        closing = self._closing(app.name, before.deployments.keys() - infos.keys(), before)
        self._show(app.name, summary(app, infos, closing))

    def _deleted_app(self, name: str, before: ApplicationStatusInfo) -> None:
        infos = self._closing(name, before.deployments.keys(), before)
        deleting = before.model_copy(update={"status": ApplicationStatus.DELETING, "message": "", "deployments": infos})
        self._show(name, deleting if infos else None)

    def _closing(
        self, app: str, names: Iterable[str], before: ApplicationStatusInfo
    ) -> dict[str, DeploymentStatusInfo]:
        """Deployments that are not wanted any more, as long as their queues are there."""
        infos = {}
        for name in names:
            if (app, name) in self.observed.retired:
                continue
            states = self._states(app, name)
            self.out.append(Close(app, name, CloseReason.DELETED, last=not states))
            update = {"status": DeploymentStatus.UPDATING, "status_trigger": StatusTrigger.DELETING, "message": ""}
            infos[name] = before.deployments[name].model_copy(update=update | {"replica_states": dict(states)})
        return infos

    # One deployment

    def _deployment(self, spec: DeploymentSpec, info: DeploymentStatusInfo) -> DeploymentStatusInfo:
        info = self._count_failures(spec, info)
        current = self._current(spec)
        running = [a for a in current if self._state(a.replica_id) is ReplicaState.RUNNING]
        old = self._old(spec)
        if running and not info.started:
            info = info.model_copy(update={"started": True})
        if has_failed(spec, info):
            for assignment in current:
                self._unassign(assignment)
            if (spec.app, spec.name) in self.observed.stuck and not self._states(spec.app, spec.name)[
                ReplicaState.RUNNING
            ]:
                self.out.append(Close(spec.app, spec.name, CloseReason.FAILED))
            return self._judged(spec, info, running, old, "")
        reason = self._fill(spec, info, len(current))
        surplus = sorted(current, key=lambda a: self._state(a.replica_id) is ReplicaState.RUNNING)
        for assignment in surplus[: max(0, len(current) - spec.replicas)]:
            self._unassign(assignment)
        if len(running) >= spec.replicas:  # the new ones serve: the old ones may go
            for assignment in old:
                self._unassign(assignment)
            old = []
        return self._judged(spec, info, running, old, reason)

    def _count_failures(self, spec: DeploymentSpec, info: DeploymentStatusInfo) -> DeploymentStatusInfo:
        """Take back assignments whose replicas have ended, and count them."""
        for assignment in self._assigned_to(spec):
            if not self._has_ended(assignment.replica_id):
                continue
            self._unassign(assignment, forget=True)
            message = self.observed.replicas[assignment.replica_id].message
            update = {"failures": info.failures + 1, "failed_at_s": self.now, "message": message}
            info = info.model_copy(update=update)
        return info

    def _fill(self, spec: DeploymentSpec, info: DeploymentStatusInfo, count: int) -> str:
        """Assign what is missing. Returns why not, empty when nothing is in the way."""
        rounds = max(0, info.failures - 1) // max(1, spec.replicas)
        backoff = min(_FIRST_BACKOFF_S * 2 ** min(rounds, _MOST_DOUBLINGS), _LONGEST_BACKOFF_S)
        if info.failures and self.now < info.failed_at_s + backoff:
            return info.message
        for _ in range(count, spec.replicas):
            node_id = place(spec, self.observed.nodes.values(), self._occupied())
            if node_id is None:
                self._make_way(spec)
                return why_not(spec, list(self.observed.nodes.values()))
            assignment = Assignment(
                replica_id=f"{spec.name}-{secrets.token_hex(4)}",
                node_id=node_id,
                app=spec.app,
                deployment=spec.name,
                version=spec.version,
            )
            self.assigned[assignment.replica_id] = assignment
            self.out.append(Assign(assignment))
        return info.message if info.failures else ""

    def _make_way(self, spec: DeploymentSpec) -> None:
        """There is no room beside the old replicas: one of them goes first, when no other is going or coming."""
        old = self._old(spec)
        coming = any(self._state(a.replica_id) is not ReplicaState.RUNNING for a in self._current(spec))
        if spec.config.max_replicas_per_node is not None and old and not coming and not self._leaving(spec):
            self._unassign(old[0])

    def _judged(
        self,
        spec: DeploymentSpec,
        info: DeploymentStatusInfo,
        running: list[Assignment],
        old: list[Assignment],
        reason: str,
    ) -> DeploymentStatusInfo:
        states = self._states(spec.app, spec.name)
        update: dict[str, object] = {"replica_states": dict(states), "message": reason}
        leaving = self._leaving(spec) if info.status is DeploymentStatus.DOWNSCALING else 0
        if has_failed(spec, info):
            update |= {"status": DeploymentStatus.DEPLOY_FAILED, "status_trigger": StatusTrigger.REPLICA_STARTUP_FAILED}
            update["message"] = f"The deployment failed to start {info.failures} times in a row. Error:\n{info.message}"
            if info.status is DeploymentStatus.DEPLOY_FAILED:
                update["message"] = info.message
        elif len(running) >= spec.replicas and not old and leaving <= 0 and not self._old_still_serves(spec):
            update |= {"status": DeploymentStatus.HEALTHY, "message": "", "failures": 0}
            update["status_trigger"] = COMPLETED.get(info.status, info.status_trigger)
        elif info.started and info.status in (DeploymentStatus.HEALTHY, DeploymentStatus.UNHEALTHY):
            update |= {"status": DeploymentStatus.UNHEALTHY, "status_trigger": StatusTrigger.HEALTH_CHECK_FAILED}
        elif leaving > 0:
            update["message"] = f"{leaving} replicas are leaving."
        elif not reason:
            update["message"] = f"{len(running)} of {spec.replicas} replicas are running."
        return info.model_copy(update=update)

    # What is there

    def _assigned_to(self, spec: DeploymentSpec) -> list[Assignment]:
        return [a for a in self.assigned.values() if (a.app, a.deployment) == (spec.app, spec.name)]

    def _current(self, spec: DeploymentSpec) -> list[Assignment]:
        """Replicas of the wanted version; those of a node that drains are on their way out."""
        nodes = self.observed.nodes
        return [a for a in self._assigned_to(spec) if a.version == spec.version and not nodes[a.node_id].draining]

    def _old(self, spec: DeploymentSpec) -> list[Assignment]:
        """Replicas of other versions, which serve until the new ones do."""
        return [a for a in self._assigned_to(spec) if a.version != spec.version]

    def _old_still_serves(self, spec: DeploymentSpec) -> bool:
        """Whether a replica of another version has not begun to leave: a deploy is over when only new code answers."""
        return any(
            r.state is ReplicaState.RUNNING and r.version != spec.version and r.node_id in self.observed.nodes
            for r in self.observed.replicas.values()
            if (r.app, r.deployment) == (spec.app, spec.name)
        )

    def _leaving(self, spec: DeploymentSpec) -> int:
        """How many replicas are not wanted any more and still there."""
        return self._states(spec.app, spec.name).total() - len(self._assigned_to(spec))

    def _occupied(self) -> list[Assignment]:
        """Places that are taken: by what is assigned, and by what has not left yet."""
        leaving = [
            Assignment(**r.model_dump(include=set(Assignment.model_fields)))
            for r in self.observed.replicas.values()
            if r.replica_id not in self.assigned and r.state not in _GONE
        ]
        return [*self.assigned.values(), *leaving]

    def _state(self, replica_id: str) -> ReplicaState:
        record = self.observed.replicas.get(replica_id)
        return ReplicaState.STARTING if record is None else record.state

    def _has_ended(self, replica_id: str) -> bool:
        return self._state(replica_id) in _GONE

    def _states(self, app: str, deployment: str) -> Counter[str]:
        """How many replicas are in which state: those assigned, and those still on their way out."""
        ids = {a.replica_id for a in self.assigned.values() if (a.app, a.deployment) == (app, deployment)}
        ids |= {
            r.replica_id
            for r in self.observed.replicas.values()
            if (r.app, r.deployment) == (app, deployment) and r.state not in _GONE and r.node_id in self.observed.nodes
        }
        return Counter(str(self._state(replica_id)) for replica_id in ids)

    # What to do

    def _unassign(self, assignment: Assignment, *, forget: bool = False) -> None:
        self.assigned.pop(assignment.replica_id, None)
        self.out.append(Unassign(assignment, forget))

    def _show(self, app: str, status: ApplicationStatusInfo | None) -> None:
        if status != self.observed.statuses.get(app):
            self.out.append(SetStatus(app, status))
