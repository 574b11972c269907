"""Desired and observed state of a namespace. A change counts up the generation and is told on the events channel."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qserve.config import LEASE_S
from qserve.errors import ApplicationNotFound, BrokerRefused, CallRejected, SignatureError
from qserve.spec import (
    ApplicationStatusInfo,
    AppSpec,
    Assignment,
    NodeRecord,
    ReplicaRecord,
)
from qserve.store import scripts
from qserve.store.calls import open_queue
from qserve.store.history import History, Wish
from qserve.store.link import Link
from qserve.store.snapshot import Applications, RecordHash, Snapshot, SnapshotReader, text
from qserve.wire.keys import ClusterKeys, deployment_keys
from qserve.wire.messages import open_control, seal_control
from qserve.wire.signing import Direction, KeyRing, Signer

LEASE_MS = int(LEASE_S * 1000)


@dataclass(frozen=True, slots=True)
class Change:
    """One field of one hash to set, or to remove when `value` is None.

    Without a `field` the key is a list: the value becomes the first of 100, or the list is removed.
    """

    hash_key: str
    field: str
    value: bytes | None


class ClusterState:
    """Reads and writes the records of one namespace."""

    def __init__(self, link: Link, namespace: str, ring: KeyRing) -> None:
        self.keys = ClusterKeys(namespace)
        self.link = link
        self._namespace = namespace
        self.ring = ring
        self.history = History(link, self.keys, ring)
        self._applications = Applications(self.history.open)
        self.reader = SnapshotReader(link, self.keys, self._applications)

    # Desired state: the API's

    async def deploy(self, spec: AppSpec, code: dict[str, bytes]) -> None:
        """Want this application as it is in `spec`, whatever it is now. Raises SignatureError."""
        await self.check_seal()
        wanted = False
        while not wanted:
            before = await self.history.present(spec.name)
            wanted = await self.want({spec.name: Wish(before, spec)}, code)

    async def want(self, wishes: Mapping[str, Wish], code: Mapping[str, bytes]) -> bool:
        """Want these applications in one step; their queues take calls from now on.

        code  pickled class and arguments, by their version
        False when one of them has changed since it was read: nothing is wanted.
        """
        pipe = await self.link.ready()
        specs = [spec for wish in wishes.values() if wish.spec is not None for spec in wish.spec.deployments]
        await asyncio.gather(*(open_queue(pipe, deployment_keys(self._namespace, s.app, s.name)) for s in specs))
        return await self.history.want(wishes, code)

    async def delete(self, app: str) -> bool:
        """Want this application gone. False when it was not wanted."""
        while (before := await self.history.present(app)).raw:
            if await self.history.want({app: Wish(before, None)}, {}):
                return True
        return False

    async def app(self, name: str) -> AppSpec:
        """The application as it is wanted. Raises ApplicationNotFound that lists those there are, SignatureError."""
        raw = await self.link.call("HGET", self.keys.apps, name)
        if raw is None:
            there = sorted(text(key) for key in await self.link.call("HKEYS", self.keys.apps))
            raise ApplicationNotFound(
                f"Application {name!r} does not exist. Deployed in namespace {self._namespace!r}: {there or 'none'}."
            )
        return self.history.open(name, raw)

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
        flat = await self.link.call("HGETALL", self.keys.assignments(node_id))
        return RecordHash(Assignment, "replica_id").read(flat)

    async def record(self, replica: ReplicaRecord) -> None:
        """Show a replica's state."""
        await self.write(
            [Change(self.keys.replicas, replica.replica_id, replica.to_json())], f"replica {replica.replica_id}"
        )

    async def drop_code(self, versions: Iterable[str]) -> None:
        """Nobody runs these versions any more; those that a history has stay, for a rollback."""
        await self.history.drop_code(versions)

    async def forget(self, replica_id: str) -> None:
        """A replica has ended as it was asked to."""
        await self.write([Change(self.keys.replicas, replica_id, None)], f"replica {replica_id}")

    # Both

    async def write(self, changes: Iterable[Change], events: str | Iterable[str], holder: str = "") -> bool:
        """Make changes in one step and tell `events`. False when `holder` ("term:id") does not lead any more."""
        told = [events] if isinstance(events, str) else list(dict.fromkeys(events))
        hashes: dict[str, int] = {}
        arguments: list[str | bytes | int] = [holder, self.keys.events, len(told), *told]
        for change in changes:
            number = hashes.setdefault(change.hash_key, len(hashes) + 1)
            arguments += [number, change.field, change.value or b""]
        names = [self.keys.leader, self.keys.generation, *hashes]
        return bool(await self.link.script(scripts.WRITE, names, arguments))

    async def statuses(self) -> dict[str, ApplicationStatusInfo]:
        """Each application's status, as the leader last saw it."""
        return RecordHash(ApplicationStatusInfo).read(await self.link.call("HGETALL", self.keys.statuses))

    async def wanted(self) -> dict[str, AppSpec]:
        """Each application as it is wanted. What is not signed by the cluster, or cannot be read, is left out."""
        return self._applications.read(await self.link.call("HGETALL", self.keys.apps))[0]

    async def nodes(self) -> tuple[dict[str, NodeRecord], dict[str, NodeRecord]]:
        """Nodes with their lease, and nodes without."""
        known = RecordHash(NodeRecord, "node_id").read(await self.link.call("HGETALL", self.keys.nodes))
        leases = await self.link.call("MGET", *(self.keys.node_lease(n) for n in known)) if known else []
        alive = {n for n, lease in zip(known, leases, strict=True) if lease is not None}
        return (
            {n: record for n, record in known.items() if n in alive},
            {n: record for n, record in known.items() if n not in alive},
        )

    async def snapshot(self) -> Snapshot:
        """Everything, for one turn of the leader, without applications that cannot be trusted: nobody touches them."""
        return await self.reader.read()

    async def leader(self) -> str | None:
        """The holder ("term:id") that leads now."""
        raw = await self.link.call("GET", self.keys.leader)
        return None if raw is None else text(raw)

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
        return self.ring.signer(Direction.CONTROL, self.keys.scope(*names))
