"""What a turn works on: all that is there, indexed once, and kept up with what the turn decides. Pure."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Iterator

from qserve.controller.actions import Action, Assign, Observed, Reconfigure, Unassign
from qserve.controller.placement import Key, Rooms
from qserve.spec import Assignment, DeploymentSpec, ReplicaRecord, ReplicaState

ENDED = frozenset({ReplicaState.FAILED, ReplicaState.DIED})


def has_given_up(record: ReplicaRecord) -> bool:
    """Whether a replica is leaving although nobody asked it to: its node found it sick, or it kept its old options."""
    return record.state is ReplicaState.STOPPING and record.cause is not None


class View:
    """The cluster as it will be after the actions so far, in `out`. Assignments on nodes without a lease are not in it.

    look_again_s  when time alone will change what is to be done; seconds of the epoch
    """

    def __init__(self, observed: Observed, now: float) -> None:
        self.observed = observed
        self.now = now
        self.out: list[Action] = []
        self.look_again_s = math.inf
        self._assigned: dict[Key, dict[str, Assignment]] = {}
        self._there: dict[Key, dict[str, ReplicaRecord]] = {}
        self._lost: Counter[Key] = Counter()
        for replica_id, assignment in observed.assignments.items():
            key = (assignment.app, assignment.deployment)
            if assignment.node_id in observed.nodes:
                self._assigned.setdefault(key, {})[replica_id] = assignment
            elif assignment.node_id in observed.lapsed:
                self._lost[key] += 1
        for replica_id, record in observed.replicas.items():
            if record.state not in ENDED and record.node_id in observed.nodes:
                self._there.setdefault((record.app, record.deployment), {})[replica_id] = record
        self.rooms = Rooms(observed.nodes, self._taken(), observed.setbacks, now)
        for assigned in self._assigned.values():
            for replica_id, assignment in assigned.items():
                if self.state(replica_id) is ReplicaState.STARTING:
                    self.rooms.starts(assignment.node_id)

    def _taken(self) -> Iterator[tuple[Assignment, tuple[str, ...]]]:
        """What takes room: all that is assigned, and what has not left yet."""
        for assigned in self._assigned.values():
            for replica_id, assignment in assigned.items():
                record = self.observed.replicas.get(replica_id)
                yield assignment, () if record is None else record.gpus
        for there in self._there.values():
            for replica_id, record in there.items():
                if replica_id not in self.observed.assignments:
                    yield record, record.gpus

    # What is there

    def assigned(self, key: Key) -> list[Assignment]:
        """The replicas that a deployment is to have, on nodes that drain too."""
        return list(self._assigned.get(key, {}).values())

    def all_assigned(self) -> list[Assignment]:
        """The replicas of all deployments."""
        return [assignment for assigned in self._assigned.values() for assignment in assigned.values()]

    def lost(self, key: Key) -> int:
        """How many replicas a deployment has lost with their nodes since the last turn."""
        return self._lost[key]

    def there(self, key: Key) -> list[ReplicaRecord]:
        """The replicas that a deployment has, wanted or not, without those that have ended."""
        return list(self._there.get(key, {}).values())

    def record(self, replica_id: str) -> ReplicaRecord | None:
        """What its node says of a replica; None as long as it has not taken it up."""
        return self.observed.replicas.get(replica_id)

    def state(self, replica_id: str) -> ReplicaState:
        """A replica's state; one that nobody has taken up yet is starting."""
        record = self.observed.replicas.get(replica_id)
        return ReplicaState.STARTING if record is None else record.state

    def serves(self, replica_id: str) -> bool:
        """Whether a replica takes calls."""
        record = self.observed.replicas.get(replica_id)
        return record is not None and record.serves

    def is_staying(self, assignment: Assignment) -> bool:
        """Whether its node does not drain: one that does takes its replicas along by itself."""
        return not self.observed.nodes[assignment.node_id].draining

    def states(self, key: Key) -> Counter[str]:
        """How many replicas are in which state: those assigned, and those still on their way out."""
        ids = self._assigned.get(key, {}).keys() | self._there.get(key, {}).keys()
        return Counter(str(self.state(replica_id)) for replica_id in ids)

    def leaving(self, key: Key) -> int:
        """How many replicas are not wanted any more and still there."""
        return len(self._there.get(key, {}).keys() - self._assigned.get(key, {}).keys())

    def departing(self, key: Key) -> list[Assignment]:
        """Replicas of other deployments whose room comes free by itself: they are leaving, or about to be replaced."""
        found: list[Assignment] = []
        for other in (self._there.keys() | self._assigned.keys()) - {key}:
            assigned = self._assigned.get(other, {})
            found += [record for replica_id, record in self._there.get(other, {}).items() if replica_id not in assigned]
            coming = {a.version for r, a in assigned.items() if self.state(r) is ReplicaState.STARTING}
            found += [a for r, a in assigned.items() if coming and a.version not in coming and self.serves(r)]
        return found

    # What to do

    def assign(self, spec: DeploymentSpec, node_id: str) -> None:
        """One more replica of this deployment, on this node."""
        assignment = Assignment(
            replica_id=f"{spec.name}-{secrets.token_hex(4)}",
            node_id=node_id,
            app=spec.app,
            deployment=spec.name,
            version=spec.version,
            config_version=spec.config_version,
            resources=spec.config.resources,
        )
        self._assigned.setdefault((spec.app, spec.name), {})[assignment.replica_id] = assignment
        self.rooms.take(assignment)
        self.rooms.starts(node_id)
        self.out.append(Assign(assignment))

    def reconfigure(self, assignment: Assignment, config_version: str) -> None:
        """Tell a replica the options of now."""
        told = assignment.model_copy(update={"config_version": config_version})
        self._assigned[told.app, told.deployment][told.replica_id] = told
        self.out.append(Reconfigure(told))

    def unassign(self, assignment: Assignment, *, forget: bool = False) -> None:
        """Let a replica go. Its room stays taken until it has left."""
        self._assigned[assignment.app, assignment.deployment].pop(assignment.replica_id)
        if forget or self.record(assignment.replica_id) is None:
            self.rooms.leave(assignment)
        self.out.append(Unassign(assignment, forget))

    def look_again(self, at_s: float) -> None:
        """Have the next turn no later than this."""
        self.look_again_s = min(self.look_again_s, at_s)
