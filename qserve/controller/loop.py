"""The controller's loop: lead, read, plan, write. Killed at any moment, another goes on from what is in Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from functools import singledispatchmethod

from qserve.config import HEARTBEAT_S, LEASE_S, Settings
from qserve.controller.plan import (
    Action,
    Assign,
    BuryNode,
    Close,
    CloseReason,
    Forget,
    Observed,
    SetStatus,
    Unassign,
    plan,
)
from qserve.controller.status import idle_failures
from qserve.errors import DeploymentUnavailableError, TransportError
from qserve.spec import ApplicationStatus, Assignment
from qserve.store import calls, replies
from qserve.store.closing import answer_waiting
from qserve.store.connection import endpoint_of
from qserve.store.lease import LeaderLease
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.store.reclaim import Reclaimer
from qserve.store.state import Change, ClusterState, Snapshot
from qserve.wire.keys import deployment_keys
from qserve.wire.signing import KeyRing

logger = logging.getLogger("qserve.autoscaler")

TURN_S = 1.0
_BUSY_TURN_S = 0.1
_UNSETTLED = frozenset({ApplicationStatus.DEPLOYING, ApplicationStatus.UNHEALTHY, ApplicationStatus.DELETING})


class Controller:
    """One controller: a leader, or a stand-by that takes over when the leader's lease lapses."""

    def __init__(self, settings: Settings, controller_id: str) -> None:
        self._namespace = settings.namespace
        self._ring = KeyRing(settings.secrets)
        endpoint = endpoint_of(settings)
        self._link = Link(endpoint, f"qserve-autoscaler-{controller_id}", on_up=self._link_up)
        self.state = ClusterState(self._link, settings.namespace, self._ring)
        self.lease = LeaderLease(self._link, self.state.keys, controller_id, time.monotonic)
        self._events = Link(
            endpoint, f"qserve-autoscaler-{controller_id}-events", on_up=self._listen, on_message=self._on_event
        )
        self._woken = asyncio.Event()
        self._stopping = False
        self._generation = -1
        self._known_nodes: list[str] = []
        self._trusts_leases_at = 0.0
        self._sweeps_at = 0.0
        self._versions: set[str] = set()
        self._retired: set[tuple[str, str]] = set()
        self._unserved: frozenset[tuple[str, str]] = frozenset()
        self._unfinished = False

    async def run(self) -> None:
        """Lead when nobody else does, until drained. Raises BrokerUnavailable when Redis was never there."""
        await self._events.ready()
        leading = asyncio.create_task(self._keep_lease(), name="lease")
        try:
            while not self._stopping:
                try:
                    await self._turn()
                    await self._sweep()
                except TransportError as error:
                    logger.warning("This turn is skipped: %s", error)
                await self._rest()
        finally:
            leading.cancel()

    async def drain(self) -> None:
        """Stop, and let a stand-by lead at once. Safe to call twice."""
        self._stopping = True
        self._woken.set()
        try:
            await self.lease.resign()
        except TransportError as error:
            logger.info("The leadership is left to lapse: %s", error)
        await self._events.close()
        await self._link.close()

    async def _keep_lease(self) -> None:
        while not self._stopping:
            led = self.lease.held
            try:
                leads = await self.lease.renew()
                if leads and not led:
                    await self.state.set_seal()
            except TransportError as error:
                logger.warning("The leadership was not renewed: %s", error)
                leads = self.lease.held
            if leads != led:
                logger.info("%s (term %d).", "Leading" if leads else "Standing by", self.lease.term)
                self._generation = -1
                self._woken.set()
            await asyncio.sleep(HEARTBEAT_S)

    async def _rest(self) -> None:
        """Until something happens, and a turn's time at the longest."""
        try:
            async with asyncio.timeout(_BUSY_TURN_S if self._unfinished else TURN_S):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    async def _turn(self) -> None:
        """One turn of the loop: read the cluster, decide, write what changed."""
        if not self.lease.held or not await self._has_work():
            return
        seen = await self.state.snapshot()
        self._known_nodes = [*seen.nodes, *seen.lapsed]  # one that lapsed is work until it is buried
        self._versions |= {d.version for app in seen.apps.values() for d in app.deployments}
        self._versions |= {d.version for status in seen.statuses.values() for d in status.deployments.values()}
        self._retired -= {(app.name, d.name) for app in seen.apps.values() for d in app.deployments}
        self._unserved = idle_failures(seen.statuses)
        stuck = await self._where_calls_wait(self._unserved)
        actions = plan(seen.apps, self._observed(seen, stuck), time.time())
        for action in actions:
            await self._apply(action)
        self._unfinished = bool(actions) or any(app.status in _UNSETTLED for app in seen.statuses.values())

    async def _sweep(self) -> None:
        """Hand back what replicas without a lease hold and nobody else reclaims."""
        now = time.monotonic()
        if not self.lease.held or now < max(self._sweeps_at, self._trusts_leases_at):
            return
        self._sweeps_at = now + LEASE_S
        for app in (await self.state.wanted()).values():
            for spec in app.deployments:
                keys = deployment_keys(self._namespace, app.name, spec.name)
                await Reclaimer(self._link, self._ring, keys, spec.config.max_retries).abandoned()

    async def _has_work(self) -> bool:
        """Whether anything changed since the last turn; one command, as long as every deployment is served."""
        generation, alive = await self.state.pulse(self._known_nodes)
        quiet = generation == self._generation and all(alive) and not self._unfinished
        self._generation = generation
        return not quiet or bool(await self._where_calls_wait(self._unserved))

    async def _where_calls_wait(self, queues: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        """Those of the (application, deployment) queues in which a call waits."""
        depths = {queue: await calls.depth(self._link, deployment_keys(self._namespace, *queue)) for queue in queues}
        return frozenset(queue for queue, depth in depths.items() if depth.waiting)

    def _observed(self, seen: Snapshot, stuck: frozenset[tuple[str, str]]) -> Observed:
        trusted = time.monotonic() >= self._trusts_leases_at
        return Observed(
            statuses=seen.statuses,
            nodes=seen.nodes if trusted else seen.nodes | seen.lapsed,
            lapsed=seen.lapsed if trusted else {},
            replicas=seen.replicas,
            assignments=seen.assignments,
            retired=frozenset(self._retired),
            stuck=stuck,
        )

    @singledispatchmethod
    async def _apply(self, action: Action) -> None:
        raise TypeError(f"No way to apply {action!r}")

    @_apply.register
    async def _(self, action: Assign) -> None:
        assignment = action.assignment
        await self._write(self._assignment(assignment, present=True), event=f"assign {assignment.node_id}")

    @_apply.register
    async def _(self, action: Unassign) -> None:
        assignment = action.assignment
        changes = [self._assignment(assignment, present=False)]
        if action.forget:
            changes.append(Change(self.state.keys.replicas, assignment.replica_id, None))
        await self._write(*changes, event=f"assign {assignment.node_id}")

    @_apply.register
    async def _(self, action: Forget) -> None:
        await self._write(Change(self.state.keys.replicas, action.replica_id, None), event="forget")

    @_apply.register
    async def _(self, action: SetStatus) -> None:
        value = None if action.status is None else action.status.to_json()
        if action.status is None:  # before it shows as gone: whoever waits for that may deploy the same code again
            await self._drop_code(action.app)
        await self._write(Change(self.state.keys.statuses, action.app, value), event=f"status {action.app}")

    @_apply.register
    async def _(self, action: BuryNode) -> None:
        logger.warning("Node %s lost its lease: its %d replicas are replaced.", action.node_id, len(action.assignments))
        apps = await self.state.wanted()
        for lost in action.assignments:
            app = apps.get(lost.app)
            spec = app.deployment(lost.deployment) if app is not None else None
            retries = spec.config.max_retries if spec is not None else 0
            keys = deployment_keys(self._namespace, lost.app, lost.deployment)
            reclaimer = Reclaimer(self._link, self._ring, keys, retries)
            await reclaimer.all_of(lost.replica_id, f"the loss of its node {lost.node_id}")
        changes = [self._assignment(lost, present=False) for lost in action.assignments]
        changes += [Change(self.state.keys.replicas, lost.replica_id, None) for lost in action.assignments]
        changes.append(Change(self.state.keys.nodes, action.node_id, None))
        await self._write(*changes, event=f"node {action.node_id}")

    @_apply.register
    async def _(self, action: Close) -> None:
        keys = deployment_keys(self._namespace, action.app, action.deployment)
        error = DeploymentUnavailableError(
            f"Deployment {action.deployment!r} of application {action.app!r} {action.reason.value}"
        )
        is_deleted = action.reason is CloseReason.DELETED  # else the next deploy may run what a lost replica held
        if is_deleted and time.monotonic() >= self._trusts_leases_at:
            await Reclaimer(self._link, self._ring, keys, max_retries=0).abandoned()
        await answer_waiting(self._link, self._ring, keys, error)
        if is_deleted and action.last and await calls.retire(self._link, keys):
            self._retired.add((action.app, action.deployment))

    def _assignment(self, assignment: Assignment, *, present: bool) -> Change:
        value = assignment.to_json() if present else None
        return Change(self.state.keys.assignments(assignment.node_id), assignment.replica_id, value)

    async def _drop_code(self, leaving: str) -> None:
        """Remove the code of versions that no application but the `leaving` one uses."""
        apps, statuses = await self.state.wanted(), await self.state.statuses()
        used = {d.version for app in apps.values() for d in app.deployments}
        used |= {d.version for name, s in statuses.items() if name != leaving for d in s.deployments.values()}
        await self.state.drop_code(self._versions - used)
        self._versions &= used

    async def _write(self, *changes: Change, event: str) -> None:
        """Write under this reign's term. One that has ended changes nothing; the next turn sees that it has."""
        if not await self.state.write(changes, event, holder=self.lease.holder):
            self.lease.term = 0

    def _link_up(self, _pipe: Pipe) -> None:
        """While Redis was away nobody could renew: all leases get time for that before any counts as lapsed."""
        self._trusts_leases_at = time.monotonic() + LEASE_S

    async def _listen(self, pipe: Pipe) -> None:
        await replies.subscribe(pipe, self.state.keys.events)
        self._generation = -1
        self._woken.set()

    def _on_event(self, event: bytes) -> None:
        if not event.startswith((b"status ", b"assign ")):
            self._woken.set()
