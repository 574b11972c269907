"""All state of a namespace in one round trip: what the leader decides on, turn for turn.

Few records change between two turns: each is parsed, and each signature verified, when its bytes are new.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

from qserve.errors import SignatureError
from qserve.spec import (
    ApplicationStatusInfo,
    AppSpec,
    Assignment,
    NodeRecord,
    Record,
    ReplicaRecord,
)
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.wire.keys import ClusterKeys

logger = logging.getLogger("qserve.store")

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All state of a namespace at one moment. `nodes` holds those with a lease, `lapsed` those that lost it."""

    apps: dict[str, AppSpec]
    statuses: dict[str, ApplicationStatusInfo]
    nodes: dict[str, NodeRecord]
    lapsed: dict[str, NodeRecord]
    replicas: dict[str, ReplicaRecord]
    assignments: dict[str, Assignment]


class RecordHash(Generic[R]):
    """Reads the records of a hash. What it cannot read, or what `named` calls otherwise than its field, is left out."""

    def __init__(self, kind: type[R], named: str = "") -> None:
        self._kind = kind
        self._named = named
        self._known: dict[bytes, tuple[bytes, R | None]] = {}

    def read(self, flat: Iterable[bytes]) -> dict[str, R]:
        """The records by their field, from the reply of HGETALL."""
        known: dict[bytes, tuple[bytes, R | None]] = {}
        for field, raw in pairs(flat):
            before = self._known.get(field)
            known[field] = before if before is not None and before[0] == raw else (raw, self._parse(field, raw))
        self._known = known
        return {field.decode(): record for field, (_, record) in known.items() if record is not None}

    def _parse(self, field: bytes, raw: bytes) -> R | None:
        try:
            name, record = field.decode(), self._kind.model_validate_json(raw)
            if not name:  # a change without a field is one of a list: it would remove the whole hash
                raise ValueError("it has no name")
            if self._named and getattr(record, self._named) != name:
                raise ValueError(f"its {self._named} is {getattr(record, self._named)!r}")
        except ValueError as error:  # written by hand, or by a version that none of ours can read
            logger.warning("The record %r is passed over, it is no %s: %s", field, self._kind.__name__, error)
            return None
        return record


class Applications:
    """Reads the applications. `open_app` verifies one by its name: SignatureError when it cannot be trusted or read."""

    def __init__(self, open_app: Callable[[str, bytes], AppSpec]) -> None:
        self._open_app = open_app
        self._known: dict[str, tuple[bytes, AppSpec | None]] = {}

    def read(self, flat: Iterable[bytes]) -> tuple[dict[str, AppSpec], set[str]]:
        """The applications, and the names of those that cannot be trusted."""
        known: dict[str, tuple[bytes, AppSpec | None]] = {}
        for field, raw in pairs(flat):
            name = text(field)
            before = self._known.get(name)
            known[name] = before if before is not None and before[0] == raw else (raw, self._open(name, raw))
        self._known = known
        apps = {name: app for name, (_, app) in known.items() if app is not None}
        return apps, known.keys() - apps.keys()

    def _open(self, name: str, raw: bytes) -> AppSpec | None:
        try:
            return self._open_app(name, raw)
        except SignatureError as error:
            logger.warning("Application %r is left as it is: %s", name, error)
            return None


class SnapshotReader:
    """Reads snapshots: one round trip, and a second one when nodes are there that it did not know of."""

    def __init__(self, link: Link, keys: ClusterKeys, applications: Applications) -> None:
        self._link = link
        self._keys = keys
        self._applications = applications
        self._statuses = RecordHash(ApplicationStatusInfo)
        self._nodes = RecordHash(NodeRecord, "node_id")
        self._replicas = RecordHash(ReplicaRecord, "replica_id")
        self._assignments = RecordHash(Assignment, "replica_id")
        self.known_nodes: list[str] = []

    async def read(self) -> Snapshot:
        """Everything, without applications that cannot be trusted: nobody touches them. Raises TransportError."""
        pipe = await self._link.ready()
        names = (self._keys.apps, self._keys.statuses, self._keys.nodes, self._keys.replicas)
        known_nodes = self.known_nodes  # another read may find more meanwhile
        asked = [pipe.call("HGETALL", name) for name in names]
        told = await asyncio.gather(*asked, *self._ask_of(pipe, known_nodes))
        apps, forged = self._applications.read(told[0])
        nodes = self._nodes.read(told[2])
        leases, assigned = self._answers(known_nodes, told[4:])
        if new := [node_id for node_id in nodes if node_id not in leases]:
            more = await asyncio.gather(*self._ask_of(pipe, new))
            further, also_assigned = self._answers(new, more)
            leases |= further
            assigned += also_assigned
        self.known_nodes = list(nodes)
        replicas = self._replicas.read(told[3])
        assignments = self._assignments.read(chain.from_iterable(assigned))
        return Snapshot(
            apps=apps,
            statuses={name: status for name, status in self._statuses.read(told[1]).items() if name not in forged},
            nodes={n: record for n, record in nodes.items() if leases[n]},
            lapsed={n: record for n, record in nodes.items() if not leases[n]},
            replicas={name: replica for name, replica in replicas.items() if replica.app not in forged},
            assignments={name: taken for name, taken in assignments.items() if taken.app not in forged},
        )

    def _ask_of(self, pipe: Pipe, node_ids: Sequence[str]) -> list[Awaitable[Any]]:
        if not node_ids:
            return []
        leases = pipe.call("MGET", *(self._keys.node_lease(n) for n in node_ids))
        return [leases, *(pipe.call("HGETALL", self._keys.assignments(n)) for n in node_ids)]

    @staticmethod
    def _answers(node_ids: Sequence[str], told: Sequence[Any]) -> tuple[dict[str, bool], list[list[bytes]]]:
        """Which of these nodes have their lease, and what is assigned to each."""
        if not node_ids:
            return {}, []
        leases = {n: lease is not None for n, lease in zip(node_ids, told[0], strict=True)}
        return leases, list(told[1:])


def text(raw: bytes) -> str:
    """A name in Redis. Whoever reaches Redis may have written it: what is no UTF-8 must not end the reader."""
    return raw.decode(errors="replace")


def pairs(flat: Iterable[bytes]) -> Iterable[tuple[bytes, bytes]]:
    """Fields and values of a hash, from the flat reply of HGETALL."""
    fields = iter(flat)
    return zip(fields, fields, strict=True)
