"""What to do next, from what is wanted and what is there. Pure: time comes in, actions go out as data.

Applied until quiet it reaches the desired state; when nothing changes it returns nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qserve.controller.actions import BuryNode, Close, CloseReason, Decided, Forget, Observed, SetStatus
from qserve.controller.rollout import Rollout
from qserve.controller.status import NOTHING, fresh, scaled, summary
from qserve.controller.view import ENDED, View
from qserve.spec import (
    ApplicationStatus,
    ApplicationStatusInfo,
    AppSpec,
    DeploymentSpec,
    DeploymentStatus,
    DeploymentStatusInfo,
    StatusTrigger,
)

# Callers may still add calls to a queue that closes: it is looked at so often until it is empty.
_CLOSING_TURN_S = 0.1


def plan(desired: Mapping[str, AppSpec], observed: Observed, now: float) -> Decided:
    """All that is to be done now, in the order in which it is to be done.

    now  seconds of the epoch
    """
    return _Planner(desired, observed, now).decide()


class _Planner:
    """One turn. Applications that their workers host by themselves (`fixed`) are left alone."""

    def __init__(self, desired: Mapping[str, AppSpec], observed: Observed, now: float) -> None:
        self._desired = desired
        self._observed = observed
        self._view = View(observed, now)

    def decide(self) -> Decided:
        self._bury_nodes()
        self._drop_unwanted()
        for app in self._desired.values():
            if not app.fixed:
                self._app(app)
        for name, status in self._observed.statuses.items():
            if name not in self._desired:
                self._deleted_app(name, status)
        return Decided(self._view.out, self._view.look_again_s)

    def _bury_nodes(self) -> None:
        """Nodes that lost their lease, with all that they hosted: what is assigned, and what was leaving."""
        for node_id in self._observed.lapsed:
            lost = {r: a for r, a in self._observed.assignments.items() if a.node_id == node_id}
            leaving = {r: a for r, a in self._observed.replicas.items() if a.node_id == node_id and r not in lost}
            self._view.out.append(BuryNode(node_id, (*lost.values(), *leaving.values())))

    def _drop_unwanted(self) -> None:
        """Replicas that nobody wants, or of an old version and not serving; records of no replica that is assigned."""
        wanted = {(app.name, spec.name): spec for app in self._desired.values() for spec in app.deployments}
        fixed = {name for name, app in self._desired.items() if app.fixed}
        for assignment in self._view.all_assigned():
            spec = wanted.get((assignment.app, assignment.deployment))
            serves = self._view.serves(assignment.replica_id)
            if assignment.app in fixed:
                continue
            if spec is None or (assignment.version != spec.version and not serves):
                has_ended = self._view.state(assignment.replica_id) in ENDED
                self._view.unassign(assignment, forget=has_ended)
        known = self._observed.nodes.keys() | self._observed.lapsed.keys()
        for replica_id, record in self._observed.replicas.items():
            ended = (record.state in ENDED and record.app not in fixed) or record.node_id not in known
            if ended and replica_id not in self._observed.assignments:
                self._view.out.append(Forget(replica_id))

    # One application

    def _app(self, app: AppSpec) -> None:
        before = self._observed.statuses.get(app.name, NOTHING)
        infos = {}
        for spec in app.deployments:
            info = before.deployments.get(spec.name)
            target = self._observed.targets.get((spec.app, spec.name), spec.replicas)
            is_new = info is None or info.version != spec.version or before.deploy_id != app.deploy_id
            if info is None or is_new:
                info = fresh(spec, info, target, reconfigures=self._reconfigures(spec))
            infos[spec.name] = Rollout(spec, scaled(info, target), self._view, is_new=is_new).decide()
        closing = self._closing(app.name, before.deployments.keys() - infos.keys(), before)
        self._show(app.name, summary(app, infos, closing))

    def _reconfigures(self, spec: DeploymentSpec) -> bool:
        """Whether replicas of the wanted version have other options than those of now."""
        assigned = self._view.assigned((spec.app, spec.name))
        return any(a.version == spec.version and a.config_version != spec.config_version for a in assigned)

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
            if (app, name) in self._observed.retired:
                continue
            states = self._view.states((app, name))
            self._view.out.append(Close(app, name, CloseReason.DELETED, last=not states))
            self._view.look_again(self._view.now + _CLOSING_TURN_S)
            update = {"status": DeploymentStatus.UPDATING, "status_trigger": StatusTrigger.DELETING, "message": ""}
            infos[name] = before.deployments[name].model_copy(update=update | {"replica_states": dict(states)})
        return infos

    def _show(self, app: str, status: ApplicationStatusInfo | None) -> None:
        if status != self._observed.statuses.get(app):
            self._view.out.append(SetStatus(app, status))
