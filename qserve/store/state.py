"""Desired and observed state of a namespace. A change counts up the generation and is told on the events channel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from qserve.config import LEASE_S, VERSION
from qserve.errors import ApplicationNotFound, BrokerRefused, CallRejected, SignatureError
from qserve.spec import (
    ApplicationStatusInfo,
    AppSpec,
    Assignment,
    NodeRecord,
    Record,
    ReplicaRecord,
)
from qserve.store import scripts
from qserve.store.calls import open_queue
from qserve.store.link import Link
from qserve.wire.keys import ClusterKeys, deployment_keys
from qserve.wire.messages import UnreadableVersion, open_control, seal_control
from qserve.wire.signing import Direction, KeyRing, Signer

logger = logging.getLogger("qserve.store")

R = TypeVar("R", bound=Record)
LEASE_MS = int(LEASE_S * 1000)


@dataclass(frozen=True, slots=True)
class Change:
    """One field of one hash to set, or to remove when `value` is None."""

    hash_key: str
    field: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All state of a namespace at one moment. `nodes` holds those with a lease, `lapsed` those that lost it."""

    apps: dict[str, AppSpec]
    statuses: dict[str, ApplicationStatusInfo]
    nodes: dict[str, NodeRecord]
    lapsed: dict[str, NodeRecord]
    replicas: dict[str, ReplicaRecord]
    assignments: dict[str, Assignment]


class ClusterState:
    """Reads and writes the records of one namespace."""

    def __init__(self, link: Link, namespace: str, ring: KeyRing) -> None:
        self.keys = ClusterKeys(namespace)
        self.link = link
        self._namespace = namespace
        self._ring = ring
        self._distrusted: set[str] = set()

    # Desired state: the API's

    async def deploy(self, spec: AppSpec, code: dict[str, bytes]) -> None:
        """Want this application as it is in `spec`; its queues take calls from now on. Raises SignatureError."""
        await self.check_seal()
        pipe = await self.link.ready()
        for version, blob in code.items():
            await pipe.call("SET", self.keys.code(version), seal_control(blob, self._signer("code", version)))
        for deployment in spec.deployments:
            await open_queue(pipe, deployment_keys(self._namespace, spec.name, deployment.name))
        sealed = seal_control(spec.to_json(), self._signer("app", spec.name))
        await self.write([Change(self.keys.apps, spec.name, sealed)], f"deploy {spec.name}")

    async def delete(self, app: str) -> bool:
        """Want this application gone. False when it was not wanted."""
        known = await self.link.call("HEXISTS", self.keys.apps, app)
        if known:
            await self.write([Change(self.keys.apps, app, None)], f"delete {app}")
        return bool(known)

    async def app(self, name: str) -> AppSpec:
        """The application as it is wanted. Raises ApplicationNotFound that lists those there are, SignatureError."""
        raw = await self.link.call("HGET", self.keys.apps, name)
        if raw is None:
            there = sorted(_text(key) for key in await self.link.call("HKEYS", self.keys.apps))
            raise ApplicationNotFound(
                f"Application {name!r} does not exist. Deployed in namespace {self._namespace!r}: {there or 'none'}."
            )
        return self._open_app(name, raw)

    async def code(self, version: str) -> bytes:
        """The pickled class and arguments of a deployment's version; verified, not unpickled."""
        raw = await self.link.call("GET", self.keys.code(version))
        if raw is None:
            raise CallRejected(f"The code of version {version} is not in Redis any more. Deploy the application again.")
        return open_control(raw, self._signer("code", version))

    # The secret

    async def set_seal(self) -> None:
        """Show which secret this cluster has; the leader's to do."""
        await self.link.call("SET", self.keys.seal, seal_control(b"seal", self._signer("seal")))

    async def check_seal(self) -> None:
        """Raises SignatureError when the leader has another secret than this process. Without a leader, all is well."""
        raw = await self.link.call("GET", self.keys.seal)
        if raw is None:
            return
        try:
            open_control(raw, self._signer("seal"))
        except SignatureError as error:
            cluster = f"the cluster in namespace {self._namespace!r}"
            raise SignatureError(f"This process does not have the secret of {cluster}. Its seal: {error}") from error

    # Observed state: the nodes'

    async def announce(self, node: NodeRecord) -> None:
        """Show this node to the controllers."""
        await self.link.call("SET", self.keys.node_lease(node.node_id), "1", "PX", LEASE_MS)
        await self.write([Change(self.keys.nodes, node.node_id, node.to_json())], f"node {node.node_id}")

    async def withdraw(self, node_id: str) -> None:
        """This node has left, with all that it hosted."""
        await self.write([Change(self.keys.nodes, node_id, None)], f"node {node_id}")
        await self.link.call("UNLINK", self.keys.node_lease(node_id), self.keys.assignments(node_id))

    async def renew(self, names: Sequence[str]) -> bool:
        """Renew leases, all in one write. Returns whether the first of them had not lapsed."""
        pipe = await self.link.ready()
        # Not SET for all: a server that is out of memory refuses it, and would see all its workers lapse.
        held = await asyncio.gather(*(pipe.call("PEXPIRE", name, LEASE_MS) for name in names))
        lapsed = [name for name, was_held in zip(names, held, strict=True) if not was_held]
        await asyncio.gather(*(pipe.call("SET", name, "1", "PX", LEASE_MS) for name in lapsed))
        return bool(held[0])

    async def assignments(self, node_id: str) -> dict[str, Assignment]:
        """What the leader wants this node to host."""
        return _records(await self.link.call("HGETALL", self.keys.assignments(node_id)), Assignment, "replica_id")

    async def record(self, replica: ReplicaRecord) -> None:
        """Show a replica's state."""
        await self.write(
            [Change(self.keys.replicas, replica.replica_id, replica.to_json())], f"replica {replica.replica_id}"
        )

    async def drop_code(self, versions: Iterable[str]) -> None:
        """Nobody wants these versions any more."""
        for version in versions:
            await self.link.call("UNLINK", self.keys.code(version))

    async def forget(self, replica_id: str) -> None:
        """A replica has ended as it was asked to."""
        await self.write([Change(self.keys.replicas, replica_id, None)], f"replica {replica_id}")

    # Both

    async def write(self, changes: Iterable[Change], event: str, holder: str = "") -> bool:
        """Make changes in one step and tell `event`. False when `holder` ("term:id") does not lead any more."""
        hashes: list[str] = []
        arguments: list[str | bytes | int] = [holder, self.keys.events, event]
        for change in changes:
            if change.hash_key not in hashes:
                hashes.append(change.hash_key)
            arguments += [hashes.index(change.hash_key) + 1, change.field, change.value or b""]
        names = [self.keys.leader, self.keys.generation, *hashes]
        return bool(await self.link.script(scripts.WRITE, names, arguments))

    async def statuses(self) -> dict[str, ApplicationStatusInfo]:
        """Each application's status, as the leader last saw it."""
        return _records(await self.link.call("HGETALL", self.keys.statuses), ApplicationStatusInfo)

    async def wanted(self) -> dict[str, AppSpec]:
        """Each application as it is wanted. What is not signed by the cluster, or cannot be read, is left out."""
        return (await self._read_apps())[0]

    async def _read_apps(self) -> tuple[dict[str, AppSpec], set[str]]:
        """The applications, and the names of those that cannot be trusted."""
        apps: dict[str, AppSpec] = {}
        forged: set[str] = set()
        for key, value in _pairs(await self.link.call("HGETALL", self.keys.apps)):
            name = _text(key)
            try:
                apps[name] = self._open_app(name, value)
            except SignatureError as error:
                forged.add(name)
                if name not in self._distrusted:
                    logger.warning("Application %r is left as it is: %s", name, error)
        self._distrusted = forged
        return apps, forged

    async def nodes(self) -> tuple[dict[str, NodeRecord], dict[str, NodeRecord]]:
        """Nodes with their lease, and nodes without."""
        known = _records(await self.link.call("HGETALL", self.keys.nodes), NodeRecord, "node_id")
        leases = await self.link.call("MGET", *(self.keys.node_lease(n) for n in known)) if known else []
        alive = {n for n, lease in zip(known, leases, strict=True) if lease is not None}
        return (
            {n: record for n, record in known.items() if n in alive},
            {n: record for n, record in known.items() if n not in alive},
        )

    async def snapshot(self) -> Snapshot:
        """Everything, for one turn of the leader, without applications that cannot be trusted: nobody touches them."""
        apps, forged = await self._read_apps()
        nodes, lapsed = await self.nodes()
        assignments: dict[str, Assignment] = {}
        for node_id in (*nodes, *lapsed):
            assignments |= await self.assignments(node_id)
        replicas = _records(await self.link.call("HGETALL", self.keys.replicas), ReplicaRecord, "replica_id")
        return Snapshot(
            apps=apps,
            statuses={name: status for name, status in (await self.statuses()).items() if name not in forged},
            nodes=nodes,
            lapsed=lapsed,
            replicas={name: replica for name, replica in replicas.items() if replica.app not in forged},
            assignments={name: assigned for name, assigned in assignments.items() if assigned.app not in forged},
        )

    async def leader(self) -> str | None:
        """The holder ("term:id") that leads now."""
        raw = await self.link.call("GET", self.keys.leader)
        return None if raw is None else _text(raw)

    async def pulse(self, node_ids: Sequence[str]) -> tuple[int, list[bool]]:
        """The generation, and which nodes have their lease: one cheap command that tells whether a turn has work.

        Raises BrokerRefused when somebody has put something else in the place of the generation.
        """
        reply = await self.link.call("MGET", self.keys.generation, *(self.keys.node_lease(n) for n in node_ids))
        try:
            generation = int(reply[0] or 0)
        except ValueError as error:
            text = f"{self.keys.generation} is no number: {reply[0][:20]!r}. Remove that key, it is counted anew."
            raise BrokerRefused(text) from error
        return generation, [lease is not None for lease in reply[1:]]

    def _signer(self, *names: str) -> Signer:
        """The signer for one application, one version's code or the seal: none passes for another."""
        return self._ring.signer(Direction.CONTROL, self.keys.scope(*names))

    def _open_app(self, name: str, raw: bytes) -> AppSpec:
        opened = open_control(raw, self._signer("app", name))
        try:
            spec = AppSpec.model_validate_json(opened)
        except ValueError as error:
            text = f"This version of qserve ({VERSION}) cannot read it; was it deployed by a newer one? {error}"
            raise UnreadableVersion(text) from error
        if spec.name != name:  # only where nothing is signed
            raise SignatureError(f"It is the application {spec.name!r} under another name.")
        return spec


def _text(raw: bytes) -> str:
    """A name in Redis. Whoever reaches Redis may have written it: what is no UTF-8 must not end the reader."""
    return raw.decode(errors="replace")


def _pairs(flat: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _records(flat: Sequence[bytes], kind: type[R], named: str = "") -> dict[str, R]:
    """The records of a hash by their field, without those that cannot be read or that `named` calls otherwise."""
    found: dict[str, R] = {}
    for key, value in _pairs(flat):
        try:
            name, record = key.decode(), kind.model_validate_json(value)
            if named and getattr(record, named) != name:
                raise ValueError(f"its {named} is {getattr(record, named)!r}")
            found[name] = record
        except ValueError as error:  # written by hand, or by a version that none of ours can read
            logger.warning("The record %r is passed over, it is no %s: %s", key, kind.__name__, error)
    return found
