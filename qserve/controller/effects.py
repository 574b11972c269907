"""What follows from a turn's decisions: records to write, and what must have happened before they are written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from qserve.controller.actions import (
    Action,
    Assign,
    Avoid,
    BuryNode,
    Close,
    CloseReason,
    Forget,
    Reconfigure,
    SetStatus,
    Unassign,
)
from qserve.controller.placement import Key, Setback
from qserve.errors import DeploymentUnavailableError
from qserve.spec import Assignment
from qserve.store import calls
from qserve.store.closing import answer_all, answer_waiting
from qserve.store.link import Link
from qserve.store.reclaim import Reclaimer
from qserve.store.snapshot import Snapshot
from qserve.store.state import Change, ClusterState
from qserve.wire.keys import ClusterKeys, deployment_keys
from qserve.wire.signing import KeyRing

logger = logging.getLogger("qserve.autoscaler")

# How long a setback is remembered after it is over: another one by then lasts longer.
_REMEMBERED_S = 60.0


class Effects:
    """What a leader does beside its one write, and what it remembers of it.

    may_act         whether this controller still leads
    trusts_leases   whether a lease that is not there has lapsed: after Redis was away nobody could renew
    retired         queues that are known to be gone
    setbacks        by application, deployment and node
    """

    def __init__(
        self,
        state: ClusterState,
        ring: KeyRing,
        *,
        may_act: Callable[[], bool],
        trusts_leases: Callable[[], bool],
    ) -> None:
        self.retired: set[Key] = set()
        self.setbacks: dict[tuple[str, str, str], Setback] = {}
        self._state = state
        self._ring = ring
        self._may_act = may_act
        self._trusts_leases = trusts_leases
        self._versions: set[str] = set()

    @property
    def _link(self) -> Link:
        return self._state.link

    def saw(self, seen: Snapshot) -> None:
        """Remember and forget what follows from what is there now."""
        self._versions |= {d.version for app in seen.apps.values() for d in app.deployments}
        self._versions |= {d.version for status in seen.statuses.values() for d in status.deployments.values()}
        self.retired -= {(app.name, d.name) for app in seen.apps.values() for d in app.deployments}
        now = time.time()
        self.setbacks = {key: past for key, past in self.setbacks.items() if past.until_s + _REMEMBERED_S > now}

    async def before_write(self, actions: Iterable[Action], seen: Snapshot) -> None:
        """Do what comes before the records are changed, as long as this controller leads. Raises TransportError."""
        for action in actions:
            if not self._may_act():  # it was paused meanwhile
                return
            if isinstance(action, Avoid):
                self.setbacks[action.app, action.deployment, action.node_id] = action.setback
            elif isinstance(action, BuryNode):
                await self._bury(action, seen)
            elif isinstance(action, Close):
                await self._close(action)
            elif isinstance(action, SetStatus) and action.status is None:
                # Before it shows as gone: whoever waits for that may deploy the same code again.
                await self._drop_code(action.app, seen)

    async def _bury(self, action: BuryNode, seen: Snapshot) -> None:
        logger.warning("Node %s lost its lease: its %d replicas are replaced.", action.node_id, len(action.lost))
        for lost in action.lost:
            app = seen.apps.get(lost.app)
            spec = app.deployment(lost.deployment) if app is not None else None
            retries = spec.config.max_retries if spec is not None else 0
            keys = deployment_keys(self._state.keys.namespace, lost.app, lost.deployment)
            reclaimer = Reclaimer(self._link, self._ring, keys, retries)
            await reclaimer.all_of(lost.replica_id, f"the loss of its node {lost.node_id}")

    async def _close(self, action: Close) -> None:
        keys = deployment_keys(self._state.keys.namespace, action.app, action.deployment)
        error = DeploymentUnavailableError(
            f"Deployment {action.deployment!r} of application {action.app!r} {action.reason.value}"
        )
        is_deleted = action.reason is CloseReason.DELETED  # else the next deploy may run what a lost replica held
        if is_deleted and self._trusts_leases():
            await Reclaimer(self._link, self._ring, keys, max_retries=0).abandoned()
        answer = answer_all if is_deleted else answer_waiting
        await answer(self._link, self._ring, keys, error)
        if is_deleted and action.last and self._may_act() and await calls.retire(self._link, keys):
            self.retired.add((action.app, action.deployment))

    async def _drop_code(self, leaving: str, seen: Snapshot) -> None:
        """Remove the code of versions that no application but the `leaving` one uses."""
        used = {d.version for app in seen.apps.values() for d in app.deployments}
        used |= {d.version for name, s in seen.statuses.items() if name != leaving for d in s.deployments.values()}
        await self._state.drop_code(self._versions - used)
        self._versions &= used


def written(actions: Iterable[Action], keys: ClusterKeys) -> tuple[list[Change], list[str]]:
    """The records that actions change, and the events that tell of it."""
    changes: list[Change] = []
    events: list[str] = []
    for action in actions:
        if isinstance(action, Assign | Reconfigure):
            changes.append(_assigned(keys, action.assignment, present=True))
            events.append(f"assign {action.assignment.node_id}")
        elif isinstance(action, Unassign):
            changes.append(_assigned(keys, action.assignment, present=False))
            events.append(f"assign {action.assignment.node_id}")
            if action.forget:
                changes.append(Change(keys.replicas, action.assignment.replica_id, None))
        elif isinstance(action, Forget):
            changes.append(Change(keys.replicas, action.replica_id, None))
        elif isinstance(action, SetStatus):
            value = None if action.status is None else action.status.to_json()
            changes.append(Change(keys.statuses, action.app, value))
            events.append(f"status {action.app}")
        elif isinstance(action, BuryNode):
            changes += [_assigned(keys, lost, present=False) for lost in action.lost]
            changes += [Change(keys.replicas, lost.replica_id, None) for lost in action.lost]
            changes.append(Change(keys.nodes, action.node_id, None))
            events.append(f"node {action.node_id}")
    return changes, events


def _assigned(keys: ClusterKeys, assignment: Assignment, *, present: bool) -> Change:
    value = assignment.to_json() if present else None
    return Change(keys.assignments(assignment.node_id), assignment.replica_id, value)
