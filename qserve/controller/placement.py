"""Which node gets a replica, and why none when none. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from qserve.config import PROTOCOL_VERSION
from qserve.spec import Assignment, DeploymentSpec, NodeRecord

# An application, and a deployment of it.
Key: TypeAlias = tuple[str, str]

_GPUS = "num_gpus"
_PACKING = frozenset({"PACK", "STRICT_PACK"})
# Ten times 0.1 is not 1 in binary: what is missing by less than this is there.
_SLACK = 1e-6
_GIB = 2**30
# No host has more, and whoever reaches Redis may have written any number into a node's record.
_MOST_GPUS = 1024


class Obstacle(Enum):
    """Why a node does not take a replica, as it is said of so many nodes; in the order in which they are looked for."""

    DRAINS = "are draining"
    PROTOCOL = "speak another protocol version"
    LIST = "have --deployments lists without it"
    LABELS = "have not the labels"
    LIMIT = "have max_replicas_per_node of it"
    ROOM = "have no room"
    REFUSED = "refused it"


@dataclass(frozen=True, slots=True)
class Setback:
    """A node that lately did not take, or did not start, a replica of a deployment.

    until_s  seconds of the epoch: before that others come first, and one that refused is not asked again
    count    how often in a row
    refused  it said that the replica does not fit, although it seemed to
    message  what it said
    """

    until_s: float
    count: int = 1
    refused: bool = False
    message: str = ""


@dataclass(slots=True)
class _Room:
    """What is taken of one node.

    used      amounts, by name
    gpus      by replica: how much of GPUs it takes, and of which, if that is known
    fullness  what part of its scarcest resource is taken, 0..1
    """

    record: NodeRecord
    used: dict[str, float] = field(default_factory=dict)
    of: Counter[Key] = field(default_factory=Counter)
    total: int = 0
    starting: int = 0
    gpus: dict[str, tuple[float, tuple[str, ...]]] = field(default_factory=dict)
    fullness: float = 0.0

    def count(self, replica: Assignment, by: int, gpus: tuple[str, ...]) -> None:
        """One replica more (1) or less (-1)."""
        self.of[replica.app, replica.deployment] += by
        self.total += by
        used, offered = self.used, self.record.resources
        for name, amount in replica.resources.items():
            used[name] = used.get(name, 0.0) + by * amount
        self.fullness = max((used.get(name, 0.0) / of for name, of in offered.items() if of > 0), default=0.0)
        if share := replica.resources.get(_GPUS, 0.0):
            self.gpus.pop(replica.replica_id, None)
            if by > 0:
                self.gpus[replica.replica_id] = (share, gpus)

    def free(self, name: str) -> float:
        """How much of a resource nobody has."""
        return max(0.0, self.record.resources.get(name, 0.0) - self.used.get(name, 0.0))

    def lacks(self, need: Mapping[str, float]) -> list[str]:
        """The resources of which it has too little for one more."""
        lacking = [name for name, amount in need.items() if self.free(name) < amount - _SLACK]
        if _GPUS in need and _GPUS not in lacking and not self._has_devices(need[_GPUS]):
            lacking.append(_GPUS)
        return lacking

    def _has_devices(self, amount: float) -> bool:
        """Whether so much is free on one GPU, or on whole ones: shares left here and there are no GPU."""
        devices = self._devices()
        if amount < 1:
            return any(left >= amount - _SLACK for left in devices)
        return sum(left >= 1 - _SLACK for left in devices) >= amount - _SLACK

    def _devices(self) -> list[float]:
        """What is left of each GPU. Where a replica has not said yet which ones it got, as its node would choose."""
        named: dict[str, float] = {}
        unsaid: list[float] = []
        for amount, gpus in self.gpus.values():
            if not gpus:
                unsaid.append(amount)
            for gpu in gpus:
                named[gpu] = named.get(gpu, 1.0) - min(amount, 1.0)
        count = min(math.ceil(self.record.resources.get(_GPUS, 0.0)), _MOST_GPUS)
        left = [*named.values(), *[1.0] * (count - len(named))]
        for amount in sorted(unsaid, reverse=True):
            for _ in range(max(1, round(amount))):
                fitting = [i for i, free in enumerate(left) if free >= min(amount, 1.0) - _SLACK]
                if fitting:
                    left[min(fitting, key=left.__getitem__)] -= min(amount, 1.0)
        return left


class _Need:
    """What one replica of a deployment asks of a node."""

    __slots__ = ("key", "labels", "limit", "packed", "resources")

    def __init__(self, spec: DeploymentSpec) -> None:
        self.key: Key = (spec.app, spec.name)
        self.resources = spec.config.resources
        self.labels = spec.config.label_selector
        self.limit = spec.config.max_replicas_per_node
        self.packed = is_packed(spec)

    def said_of(self, obstacle: Obstacle) -> str:
        """An obstacle with its particulars."""
        wanted = ", ".join(f"{name}={condition}" for name, condition in self.labels.items())
        particulars = {
            Obstacle.LABELS: f"have not the labels {wanted}",
            Obstacle.LIMIT: f"have max_replicas_per_node={self.limit} of it",
        }
        return particulars.get(obstacle, obstacle.value)


class Rooms:
    """The nodes and what is taken of them, kept up while a turn decides.

    taken     every replica that is on a node or is to be, also those that are leaving; with the GPUs that it has
    setbacks  by application, deployment and node
    now       seconds of the epoch
    """

    def __init__(
        self,
        nodes: Mapping[str, NodeRecord],
        taken: Iterable[tuple[Assignment, tuple[str, ...]]],
        setbacks: Mapping[tuple[str, str, str], Setback],
        now: float,
    ) -> None:
        self._rooms = {node_id: _Room(record) for node_id, record in nodes.items()}
        self._setbacks: dict[Key, dict[str, Setback]] = {}
        for (app, deployment, node_id), setback in setbacks.items():
            if setback.until_s > now:
                self._setbacks.setdefault((app, deployment), {})[node_id] = setback
        for replica, gpus in taken:
            self.take(replica, gpus)

    def take(self, replica: Assignment, gpus: tuple[str, ...] = ()) -> None:
        """The replica is on its node, or will be."""
        if replica.node_id in self._rooms:
            self._rooms[replica.node_id].count(replica, 1, gpus)

    def leave(self, replica: Assignment) -> tuple[str, ...]:
        """The replica is not there any more. Returns the GPUs that it had."""
        room = self._rooms.get(replica.node_id)
        if room is None:
            return ()
        gpus = room.gpus.get(replica.replica_id, (0.0, ()))[1]
        room.count(replica, -1, gpus)
        return gpus

    def starts(self, node_id: str) -> None:
        """A replica has yet to run on this node."""
        if node_id in self._rooms:
            self._rooms[node_id].starting += 1

    def is_starting(self, node_id: str) -> bool:
        """Whether a replica has yet to run on this node."""
        return bool(self._rooms[node_id].starting)

    def replicas_on(self, node_id: str) -> int:
        """How many replicas a node has, of all deployments."""
        return self._rooms[node_id].total

    def replicas_of(self, key: Key, node_id: str) -> int:
        """How many replicas of a deployment a node has."""
        return self._rooms[node_id].of[key]

    def set_back(self, key: Key, node_id: str, setback: Setback) -> None:
        """A node has just not taken, or not started, a replica of a deployment."""
        self._setbacks.setdefault(key, {})[node_id] = setback

    def setback_ends_s(self, key: Key) -> float:
        """When the first setback of a deployment is over; infinity when it has none."""
        return min((setback.until_s for setback in self._setbacks.get(key, {}).values()), default=math.inf)

    def place(self, spec: DeploymentSpec, *, everywhere: bool = True) -> str | None:
        """The node for one more replica; None when none takes it.

        Spread: the one with the fewest of it, then the emptiest. Packed: the fullest that has room.

        everywhere  also where it lately failed to start, if no other node takes it
        """
        needed, unlucky = _Need(spec), self._setbacks.get((spec.app, spec.name), {})
        for room in sorted(self._rooms.values(), key=lambda room: _rank(needed, room, unlucky)):
            if not everywhere and room.record.node_id in unlucky:
                continue
            if self._obstacle(needed, room) is None:
                return room.record.node_id
        return None

    def why_not(self, spec: DeploymentSpec) -> str:
        """Why no node takes a replica, for its status: one line."""
        needed = _Need(spec)
        found: dict[Obstacle, list[_Room]] = {}
        for room in self._rooms.values():
            obstacle = self._obstacle(needed, room)
            if obstacle is not None:
                found.setdefault(obstacle, []).append(room)
        if not self._rooms:
            return "No worker has joined: start one with `qserve worker` on a host that reaches the same Redis."
        of = f"of {len(self._rooms)} nodes"
        parts = self._shortages(needed.resources, found.pop(Obstacle.ROOM, []))
        for room in found.pop(Obstacle.REFUSED, []):
            said = self._setbacks[spec.app, spec.name][room.record.node_id].message
            parts.append(f"{room.record.host} refused it: {said.splitlines()[0] if said else 'no reason given'}")
        parts += [f"{len(found[kind])} {of} {needed.said_of(kind)}" for kind in Obstacle if kind in found]
        return f"No node takes another replica of it: {'; '.join(parts)}."

    def _obstacle(self, needed: _Need, room: _Room) -> Obstacle | None:
        node, setback = room.record, self._setbacks.get(needed.key, {}).get(room.record.node_id)
        found: Obstacle | None = None
        if node.draining:
            found = Obstacle.DRAINS
        elif node.protocol != PROTOCOL_VERSION:
            found = Obstacle.PROTOCOL
        elif not node.accepts(*needed.key):
            found = Obstacle.LIST
        elif not has_labels(node.labels, needed.labels):
            found = Obstacle.LABELS
        elif needed.limit is not None and room.of[needed.key] >= needed.limit:
            found = Obstacle.LIMIT
        elif room.lacks(needed.resources):
            found = Obstacle.ROOM
        elif setback is not None and setback.refused:
            found = Obstacle.REFUSED
        return found

    def _shortages(self, need: Mapping[str, float], short: list[_Room]) -> list[str]:
        """What is missing on nodes that would take a replica if they had the room."""
        if not short:
            return []
        offered = {name for room in self._rooms.values() for name, amount in room.record.resources.items() if amount}
        nobody = f"0 of {len(self._rooms)} nodes offer"
        if missing := [name for name in need if name not in offered]:
            nouns = {_GPUS: "a GPU"}
            return [f"needs {name}={_amount(name, need[name])}; {nobody} {nouns.get(name, name)}" for name in missing]
        parts = []
        for name, amount in need.items():
            wanted = f"needs {name}={_amount(name, amount)}"
            most = max(short, key=lambda room: room.free(name))
            if most.free(name) < amount - _SLACK:
                free = _amount(name, most.free(name))
                parts.append(f"{wanted}; the most that is free is {free} on {most.record.host}")
            elif all(room.lacks({name: amount}) for room in short):
                parts.append(f"{wanted}; what is free of GPUs are shares of several")
        if not parts:
            together = ", ".join(f"{name}={_amount(name, amount)}" for name, amount in need.items())
            parts.append(f"needs {together}; no node has all of that free")
        return parts


def is_packed(spec: DeploymentSpec) -> bool:
    """Whether one node is to be filled before the next."""
    return spec.config.placement_group_strategy in _PACKING


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node's labels are as a deployment's `label_selector` wants them."""
    return all(_admits(condition, labels.get(name)) for name, condition in selector.items())


def _admits(condition: str, value: str | None) -> bool:
    text = condition.removeprefix("!")
    listed = {text}
    if text.startswith("in(") and text.endswith(")"):
        listed = {part.strip() for part in text[3:-1].split(",")}
    return (value in listed) is not condition.startswith("!")


def _rank(needed: _Need, room: _Room, unlucky: Container[str]) -> tuple[bool, float, float, int, str]:
    """The node with the lowest one that has room is chosen."""
    node_id, of_it = room.record.node_id, room.of[needed.key]
    if needed.packed:
        return (node_id in unlucky, -room.fullness, -of_it, -room.total, node_id)
    return (node_id in unlucky, of_it, room.fullness, room.total, node_id)


def _amount(name: str, amount: float) -> str:
    """An amount as people read it."""
    return f"{amount / _GIB:.3g} GiB" if name == "memory" else f"{amount:g}"
