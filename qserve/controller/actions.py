"""What a turn of the leader sees, and what it may decide to do. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from qserve.controller.placement import Key, Setback
from qserve.spec import ApplicationStatusInfo, Assignment, NodeRecord, ReplicaRecord


@dataclass(frozen=True, slots=True)
class Observed:
    """What is there.

    targets   how many replicas a deployment shall have; of others it is `DeploymentSpec.replicas`
    retired   queues that are known to be gone
    stuck     queues of deployments that failed, in which calls wait
    held      how many calls a replica has, where that is known
    setbacks  by application, deployment and node
    """

    statuses: Mapping[str, ApplicationStatusInfo]
    nodes: Mapping[str, NodeRecord]
    lapsed: Mapping[str, NodeRecord]
    replicas: Mapping[str, ReplicaRecord]
    assignments: Mapping[str, Assignment]
    targets: Mapping[Key, int] = field(default_factory=dict)
    retired: frozenset[Key] = frozenset()
    stuck: frozenset[Key] = frozenset()
    held: Mapping[str, int] = field(default_factory=dict)
    setbacks: Mapping[tuple[str, str, str], Setback] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assign:
    """A node shall run one more replica."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """A replica shall be told the options of now; its assignment says so."""

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
class Avoid:
    """A node did not take or start a replica of a deployment: others come first for a while."""

    app: str
    deployment: str
    node_id: str
    setback: Setback


@dataclass(frozen=True, slots=True)
class BuryNode:
    """A node lost its lease: the calls of all that it hosted go to others, its records go."""

    node_id: str
    lost: tuple[Assignment, ...]


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


Action: TypeAlias = Assign | Reconfigure | Unassign | Forget | Avoid | BuryNode | Close | SetStatus


@dataclass(frozen=True, slots=True)
class Decided:
    """What a turn does, and when to look again although nothing has changed (seconds of the epoch; inf: never)."""

    actions: list[Action]
    look_again_s: float
