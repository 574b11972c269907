"""A worker that hosts a fixed number of replicas by itself: it deploys the application and assigns to its own node.

It does for one node and one application what a leader does for all: so a cluster of such workers needs no autoscaler,
and one that runs leaves them alone. What runs is compared with what is wanted when something happens, and with each
heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qserve.config import HEARTBEAT_S, LEASE_S, Settings
from qserve.errors import TransportError, UsageError
from qserve.graph import FlatApp
from qserve.spec import AppSpec, Assignment, DeploymentSpec, ExitCause, NodeRecord, ReplicaRecord, ReplicaState
from qserve.store import replies
from qserve.store.connection import endpoint_of
from qserve.store.fixed import close_queues
from qserve.store.history import Read, Wish
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.store.reclaim import Reclaimer
from qserve.store.snapshot import Snapshot
from qserve.store.state import Change, ClusterState
from qserve.wire.keys import deployment_keys
from qserve.wire.signing import KeyRing

logger = logging.getLogger("qserve.worker")

_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 10.0
_MOST_DOUBLINGS = 10
_GONE = frozenset({ReplicaState.FAILED, ReplicaState.DIED})


@dataclass(frozen=True, slots=True)
class FixedApp:
    """What a worker hosts by itself.

    flat      the application and its code
    replicas  how many of each deployment; those that are not named have none here
    """

    flat: FlatApp
    replicas: Mapping[str, int]

    @classmethod
    def of(cls, flat: FlatApp, replicas: Mapping[str, int]) -> FixedApp:
        """The application as a fixed one; one replica of each deployment when none is named. Raises UsageError."""
        names = [spec.name for spec in flat.spec.deployments]
        if unknown := sorted(replicas.keys() - set(names)):
            raise UsageError(f"--replicas names {unknown}; the application has the deployments {names}.")
        spec = flat.spec.model_copy(update={"fixed": True})
        return cls(FlatApp(spec, flat.code), dict(replicas) or dict.fromkeys(names, 1))

    @property
    def num_cpus(self) -> float:
        """What all its replicas take, with a replacement for each."""
        specs = self.flat.spec.deployments
        return 2 * sum(self.replicas.get(s.name, 0) * s.config.resources.get("num_cpus", 0.0) for s in specs)


@dataclass(frozen=True, slots=True)
class Failures:
    """How often replicas of a deployment ended in a row, and when the last one did (seconds of the epoch)."""

    count: int = 0
    at_s: float = 0.0

    def over_in_s(self, wanted: int, now: float) -> float:
        """For how long no other one is started; 0 or less when that time is over. It doubles with each round."""
        if not self.count:
            return 0.0
        rounds = min((self.count - 1) // max(1, wanted), _MOST_DOUBLINGS)
        backoff_s: float = min(_FIRST_BACKOFF_S * 2**rounds, _LONGEST_BACKOFF_S)
        return self.at_s + backoff_s - now


@dataclass(frozen=True, slots=True)
class Steps:
    """What is to be done for one deployment.

    start    how many replicas
    unassign those to be drained
    forget   those that have ended: their assignments and their records go
    """

    start: int = 0
    unassign: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()


def steps(wanted: int, assigned: Sequence[str], records: Mapping[str, ReplicaRecord], *, may_start: bool) -> Steps:
    """How to come from the replicas of a deployment that are here to `wanted` ones that stay. Pure.

    assigned   ids of those that are assigned to this node
    records    of all that are here, also of those that leave
    may_start  whether no failure holds it back; until then the records of those that ended stay, for their messages
    """
    here = {replica_id: records.get(replica_id) for replica_id in assigned}
    ended = tuple(r for r, record in here.items() if record is not None and record.state in _GONE)
    retiring = [r for r, record in here.items() if record is not None and record.serves and record.retiring]
    leaving = {r for r, record in records.items() if record.state is ReplicaState.STOPPING}
    staying = [r for r in here if r not in leaving and r not in ended and r not in retiring]
    serving = [r for r in staying if (record := here[r]) is not None and record.serves]
    missing = wanted - len(staying)
    if missing <= 0:
        surplus = sorted(staying, key=lambda r: r in serving)[: len(staying) - wanted]
        replaced = retiring if len(serving) >= wanted else []
        return Steps(unassign=(*surplus, *replaced), forget=ended)
    refused = any((record := here[r]) is not None and record.cause is ExitCause.REFUSED for r in ended)
    if not may_start or (leaving and (refused or retiring)):
        return Steps()
    if refused and retiring:  # there is no room beside those that are to be replaced: one of them goes first
        return Steps(unassign=(retiring[0],), forget=ended)
    return Steps(start=missing, forget=ended)


class FixedHost:
    """Keeps the replicas of one application on one node. `deploy()`, then `run()` until the application is deleted."""

    def __init__(self, settings: Settings, node: NodeRecord, app: FixedApp) -> None:
        self.specs = {spec.name: spec for spec in app.flat.spec.deployments}
        self._app = app
        self._name = app.flat.spec.name
        self._node_id = node.node_id
        self._namespace = settings.namespace
        self._ring = KeyRing(settings.secrets)
        self._woken = asyncio.Event()
        self._stopped = False
        self._deleted = False
        self._is_undertaker = False
        self._generation = -1
        self._newest = 0  # the highest generation that was seen; it only moves back when Redis loses what it held
        self._known_nodes: list[str] = []
        self._mine: set[str] = set()
        self._failures: dict[str, Failures] = {}
        self._counted: set[str] = set()
        self._due_at = float("inf")
        self._trusts_leases_at = 0.0
        self._sweeps_at = 0.0
        self._link = Link(endpoint_of(settings), f"qserve-worker-{node.node_id}-fixed", on_up=self._link_up)
        self._events = Link(
            endpoint_of(settings),
            f"qserve-worker-{node.node_id}-fixed-events",
            on_up=self._listen,
            on_message=self._on_event,
        )
        self.state = ClusterState(self._link, settings.namespace, self._ring)

    async def deploy(self) -> None:
        """Want the application as this worker has it; nothing changes when it is wanted so already.

        Raises UsageError when an application of that name is there which autoscalers take care of, SignatureError.
        """
        await self.state.check_seal()
        while True:
            present = await self.state.history.read()
            before = present.pop(self._name, Read())
            wanted = _routed(self._app.flat.spec, [read.spec for read in present.values() if read.spec is not None])
            if before.raw and before.spec is None:
                await self.state.app(self._name)  # raises what is wrong with it
            if before.spec is not None and not before.spec.fixed:
                raise UsageError(
                    f"Application {self._name!r} is deployed already, and autoscalers take care of it: choose another "
                    f"--name, or `qserve delete {self._name}` first."
                )
            if before.spec is not None and _is_same(before.spec, wanted):
                return
            if await self.state.want({self._name: Wish(before, wanted)}, self._app.flat.code):
                logger.info("Application %r is deployed as this worker has it.", self._name)
                return

    async def run(self) -> None:
        """Keep the replicas until `stop()`, or until the application is not this worker's to host any more."""
        await self._events.ready()
        while not self._stopped:
            self._woken.clear()
            try:
                await self._turn()
                await self._sweep()
            except TransportError as error:
                logger.warning("This turn is skipped: %s", error)
                self._generation = -1
            await self._rest()

    def stop(self) -> None:
        """Start nothing more. Safe to call twice."""
        self._stopped = True
        self._woken.set()

    async def close(self) -> None:
        """After the replicas have left: remove their records; answer what waits, if the application was deleted."""
        self.stop()
        try:
            # Replicas that ended unasked: their records were kept for their messages.
            await self.state.write(
                [Change(self.state.keys.replicas, r, None) for r in self._mine], f"node {self._node_id}"
            )
            if self._deleted and not await self._is_wanted():
                await close_queues(self.state, self._name, self.specs.values())
        except TransportError as error:
            logger.warning("What this worker leaves of %r is left to others: %s", self._name, error)
        await self._events.close()
        await self._link.close()

    # What runs

    async def _turn(self) -> None:
        """Read, decide, write: what runs here, and what a lost worker of this application has left."""
        generation, alive = await self.state.pulse(self._known_nodes)
        if generation == self._generation and all(alive) and time.time() < self._due_at:
            return
        was_emptied, self._newest = generation < self._newest, generation
        seen = await self.state.snapshot()
        if was_emptied and self._name not in seen.apps:
            logger.warning("Redis has lost its state: application %r is deployed again.", self._name)
            self._generation = -1
            await self.deploy()
            return
        self._known_nodes = [n for n, node in (seen.nodes | seen.lapsed).items() if node.deployments == (self._name,)]
        if not await self._is_ours(seen.apps.get(self._name)):
            self.stop()
            return
        await self._keep(seen)
        leaders = [n for n in self._known_nodes if n in seen.nodes and not seen.nodes[n].draining]
        self._is_undertaker = self._node_id == min(leaders, default="")
        if self._may_bury:
            for node_id in self._known_nodes:
                if node_id in seen.lapsed:
                    await self._bury(node_id, seen)
        self._generation = generation  # now that all of it is done: what was cut off is done again

    async def _is_ours(self, app: AppSpec | None) -> bool:
        if app is not None and not app.fixed:
            logger.warning("Application %r was deployed for autoscalers: this worker leaves it to them.", self._name)
            return False
        self._deleted = app is None and not await self._is_wanted()  # it may be there and not be readable
        if self._deleted:
            logger.info("Application %r was deleted: this worker leaves.", self._name)
        return not self._deleted

    async def _is_wanted(self) -> bool:
        return bool((await self.state.history.present(self._name)).raw)

    async def _keep(self, seen: Snapshot) -> None:
        """Bring what is assigned to this node to what is wanted here."""
        now = time.time()
        mine = [a for a in seen.assignments.values() if a.node_id == self._node_id and a.app == self._name]
        here = {r: record for r, record in seen.replicas.items() if record.node_id == self._node_id}
        self._mine = {a.replica_id for a in mine}
        self._count_failures(here, now)
        waits = {name: self._over_in_s(name, now) for name in self.specs}
        self._due_at = min((now + wait_s for wait_s in waits.values() if wait_s > 0), default=float("inf"))
        hash_key = self.state.keys.assignments(self._node_id)
        changes = []
        for name, spec in self.specs.items():
            assigned = [a.replica_id for a in mine if a.deployment == name]
            records = {r: record for r, record in here.items() if record.deployment == name}
            todo = steps(self._app.replicas.get(name, 0), assigned, records, may_start=waits[name] <= 0)
            new = [self._assignment(spec) for _ in range(todo.start)]
            changes += [Change(hash_key, replica_id, None) for replica_id in (*todo.unassign, *todo.forget)]
            changes += [Change(self.state.keys.replicas, replica_id, None) for replica_id in todo.forget]
            changes += [Change(hash_key, assignment.replica_id, assignment.to_json()) for assignment in new]
            self._mine |= {assignment.replica_id for assignment in new}
        if changes and self._node_id in seen.nodes and not self._stopped:
            await self.state.write(changes, f"assign {self._node_id}")

    def _count_failures(self, records: Mapping[str, ReplicaRecord], now: float) -> None:
        ended = {r for r in self._mine if r in records and records[r].state in _GONE}
        for replica_id in ended - self._counted:
            record = records[replica_id]
            before = self._failures.get(record.deployment, Failures())
            lived_s = now - record.started_at_s if record.started_at_s else 0.0
            count = 1 if lived_s >= _LONGEST_BACKOFF_S else before.count + 1
            self._failures[record.deployment] = Failures(count, now)
        self._counted = ended

    def _over_in_s(self, name: str, now: float) -> float:
        return self._failures.get(name, Failures()).over_in_s(self._app.replicas.get(name, 0), now)

    def _assignment(self, spec: DeploymentSpec) -> Assignment:
        return Assignment(
            replica_id=f"{spec.name}-{secrets.token_hex(4)}",
            node_id=self._node_id,
            app=spec.app,
            deployment=spec.name,
            version=spec.version,
            config_version=spec.config_version,
            resources=spec.config.resources,
        )

    # What others have left

    @property
    def _may_bury(self) -> bool:
        """Whether it is on this worker to clear up, and a lease that is not there has really lapsed."""
        return self._is_undertaker and not self._stopped and time.monotonic() >= self._trusts_leases_at

    async def _bury(self, node_id: str, seen: Snapshot) -> None:
        """Hand back the calls of a worker of this application that was lost, and remove its records."""
        lost: dict[str, Assignment] = {a.replica_id: a for a in seen.assignments.values() if a.node_id == node_id}
        lost |= {r.replica_id: r for r in seen.replicas.values() if r.node_id == node_id}
        logger.warning("Worker %s lost its lease: the calls of its %d replicas are handed back.", node_id, len(lost))
        for replica in lost.values():
            reclaimer = self._reclaimer(replica.deployment)
            await reclaimer.all_of(replica.replica_id, f"the loss of its node {node_id}")
        changes = [Change(self.state.keys.assignments(node_id), replica_id, None) for replica_id in lost]
        changes += [Change(self.state.keys.replicas, replica_id, None) for replica_id in lost]
        await self.state.write([*changes, Change(self.state.keys.nodes, node_id, None)], f"node {node_id}")

    async def _sweep(self) -> None:
        """Hand back what replicas without a lease hold and nobody else reclaims."""
        now = time.monotonic()
        if not self._may_bury or now < self._sweeps_at:
            return
        self._sweeps_at = now + LEASE_S
        for name in self.specs:
            await self._reclaimer(name).abandoned(quiet_s=LEASE_S)

    def _reclaimer(self, deployment: str) -> Reclaimer:
        spec = self.specs.get(deployment)
        keys = deployment_keys(self._namespace, self._name, deployment)
        return Reclaimer(self._link, self._ring, keys, spec.config.max_retries if spec is not None else 0)

    # Waking up

    async def _rest(self) -> None:
        """Until something happens, the next start is due, or a heartbeat has passed: an event may be lost."""
        try:
            async with asyncio.timeout(max(0.0, min(HEARTBEAT_S, self._due_at - time.time()))):
                await self._woken.wait()
        except TimeoutError:
            pass

    def _link_up(self, _pipe: Pipe) -> None:
        """While Redis was away nobody could renew: all leases get time for that before any counts as lapsed."""
        self._trusts_leases_at = time.monotonic() + LEASE_S

    async def _listen(self, pipe: Pipe) -> None:
        await replies.subscribe(pipe, self.state.keys.events)
        self._generation = -1
        self._woken.set()

    def _on_event(self, event: bytes) -> None:
        kind, _, name = event.decode(errors="replace").partition(" ")
        ours = {"deploy": {self._name}, "delete": {self._name}, "replica": self._mine, "node": {self._node_id}}
        if name in ours.get(kind, ()):
            self._woken.set()


def _routed(app: AppSpec, others: Iterable[AppSpec]) -> AppSpec:
    """The application, without its route where another one has it."""
    is_taken = any(other.route_prefix == app.route_prefix for other in others)
    return app.model_copy(update={"route_prefix": None}) if is_taken else app


def _is_same(before: AppSpec, wanted: AppSpec) -> bool:
    """Whether a deploy would change nothing that matters to a replica or a caller."""

    def essence(app: AppSpec) -> object:
        deployments = [(spec.name, spec.version, spec.config, spec.env_vars) for spec in app.deployments]
        return app.ingress, app.route_prefix, app.fixed, deployments

    return essence(before) == essence(wanted)
