"""The controller's loop: lead, read, plan, write. Killed at any moment, another goes on from what is in Redis."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from qserve.config import HEARTBEAT_S, LEASE_S, Settings
from qserve.controller.actions import Action, Observed
from qserve.controller.effects import Effects, written
from qserve.controller.placement import Key
from qserve.controller.plan import plan
from qserve.controller.scaler import Scaled, Scaler
from qserve.controller.status import idle_failures
from qserve.errors import TransportError
from qserve.store import calls, replies
from qserve.store.connection import endpoint_of
from qserve.store.delayed import Releaser
from qserve.store.lease import LeaderLease
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.store.reclaim import Reclaimer
from qserve.store.snapshot import Snapshot
from qserve.store.state import ClusterState
from qserve.wire.keys import deployment_keys
from qserve.wire.signing import KeyRing

logger = logging.getLogger("qserve.autoscaler")

TURN_S = 1.0
# A storm of events is one turn each so many seconds.
_PACE_S = 0.05
# After a turn that changed something: it may have made way for more.
_NEXT_TURN_S = 0.1
# How many queues a sweep looks at side by side.
_SWEPT_AT_ONCE = 50


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
        self._effects = Effects(
            self.state, self._ring, may_act=lambda: self.lease.held, trusts_leases=self._trusts_leases
        )
        self._scaler = Scaler(self.state)
        self._releaser = Releaser(self.state, self._ring)
        self._woken = asyncio.Event()
        self._stopping = False
        self._generation = -1
        self._seen: Snapshot | None = None
        self._targets: dict[Key, int] = {}
        self._unserved: frozenset[Key] = frozenset()
        self._look_again_s = math.inf  # of the epoch
        self._turned_at = -math.inf
        self._trusts_leases_at = 0.0
        self._sweeps_at = 0.0

    async def run(self) -> None:
        """Lead when nobody else does, until drained. Raises BrokerUnavailable when Redis was never there."""
        await self._events.ready()
        leading = asyncio.create_task(self._keep_lease(), name="lease")
        # Leading or not: a delayed call is released once whoever does it, and none waits for a new leader.
        releasing = asyncio.create_task(self._releaser.run(), name="release")
        try:
            while not self._stopping:
                rest_s = TURN_S
                try:
                    await self.turn()
                    await self._sweep()
                    rest_s = self._due_in_s()
                except TransportError as error:
                    logger.warning("This turn is skipped: %s", error)
                    self._generation = -1  # what it would have done is still to be done
                await self._rest(rest_s)
        finally:
            leading.cancel()
            releasing.cancel()

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

    async def _rest(self, at_most_s: float) -> None:
        """Until something happens, and so long at the longest; a storm of events is rested through."""
        try:
            async with asyncio.timeout(at_most_s):
                await self._woken.wait()
        except TimeoutError:
            pass
        early_s = self._turned_at + _PACE_S - time.monotonic()
        if early_s > 0 and not self._stopping:
            await asyncio.sleep(early_s)
        self._woken.clear()

    def _due_in_s(self) -> float:
        """How long nothing is to be done unless something happens."""
        if not self.lease.held:
            return TURN_S
        now = time.time()
        return max(0.0, min(TURN_S, self._look_again_s - now, self._scaler.due_in_s(now)))

    # A turn

    async def turn(self) -> None:
        """Read the cluster, decide, write what is to change, in one step. A quiet turn is one command."""
        if not self.lease.held:
            return
        self._turned_at = time.monotonic()
        generation, alive = await self.state.pulse(self.state.reader.known_nodes)
        is_news = generation != self._generation or not all(alive) or self._seen is None
        stuck = await self._where_calls_wait(self._unserved)
        now = time.time()
        is_due = is_news or bool(stuck) or now >= self._look_again_s
        if not is_due and self._scaler.due_in_s(now) > 0:
            return
        seen = await self._look(generation) if is_news or self._seen is None else self._seen
        scaled = await self._scaler.turn(seen, now)
        actions: list[Action] = []
        if is_due or scaled.targets != self._targets:
            observed = await self._observed(seen, scaled, stuck)
            decided = plan(seen.apps, observed, now)
            actions, self._look_again_s = decided.actions, decided.look_again_s
        self._targets = scaled.targets
        if actions or scaled.changes:
            self._look_again_s = min(self._look_again_s, now + _NEXT_TURN_S)
            await self._do(actions, scaled, seen)

    async def _look(self, generation: int) -> Snapshot:
        """All that is there now."""
        self._seen = seen = await self.state.snapshot()
        self._generation = generation
        self._effects.saw(seen)
        self._unserved = idle_failures(seen.statuses)
        return seen

    async def _do(self, actions: Sequence[Action], scaled: Scaled, seen: Snapshot) -> None:
        await self._effects.before_write(actions, seen)
        changes, events = written(actions, self.state.keys)
        # Under this reign's term: a leader whose reign has ended changes nothing, and stands by.
        if not await self.state.write([*changes, *scaled.changes], events, holder=self.lease.holder):
            logger.warning("Another controller leads by now: nothing was changed.")
            self.lease.lose()

    async def _observed(self, seen: Snapshot, scaled: Scaled, stuck: frozenset[Key]) -> Observed:
        trusted = self._trusts_leases()
        return Observed(
            statuses=seen.statuses,
            nodes=seen.nodes if trusted else seen.nodes | seen.lapsed,
            lapsed=seen.lapsed if trusted else {},
            replicas=seen.replicas,
            assignments=seen.assignments,
            targets=scaled.targets,
            retired=frozenset(self._effects.retired),
            stuck=stuck,
            held=await self._held(seen, scaled),
            setbacks=self._effects.setbacks,
        )

    async def _where_calls_wait(self, queues: Iterable[Key]) -> frozenset[Key]:
        """Those of the queues in which a call waits."""
        asked = list(queues)
        depths = await asyncio.gather(
            *(calls.depth(self._link, deployment_keys(self._namespace, *queue)) for queue in asked)
        )
        return frozenset(queue for queue, depth in zip(asked, depths, strict=True) if depth.waiting)

    async def _held(self, seen: Snapshot, scaled: Scaled) -> dict[str, int]:
        """How many calls the replicas hold of those deployments that have too many: the idlest go first."""
        count = Counter((a.app, a.deployment) for a in seen.assignments.values())
        wanted = {
            (app.name, d.name): d.replicas for app in seen.apps.values() if not app.fixed for d in app.deployments
        }
        shrinking = [key for key, replicas in wanted.items() if count[key] > scaled.targets.get(key, replicas)]
        held: dict[str, int] = {}
        for key in shrinking:
            held |= await calls.holders(self._link, deployment_keys(self._namespace, *key))
        return held

    # Calls that nobody reclaims

    async def _sweep(self) -> None:
        """Hand back what replicas without a lease hold and nobody else reclaims."""
        now = time.monotonic()
        if not self.lease.held or self._seen is None or now < max(self._sweeps_at, self._trusts_leases_at):
            return
        self._sweeps_at = now + LEASE_S
        queues = [
            (app.name, spec.name, spec.config.max_retries)
            for app in self._seen.apps.values()
            for spec in app.deployments
        ]
        for start in range(0, len(queues), _SWEPT_AT_ONCE):
            await asyncio.gather(*(self._sweep_one(*queue) for queue in queues[start : start + _SWEPT_AT_ONCE]))

    async def _sweep_one(self, app: str, deployment: str, max_retries: int) -> None:
        keys = deployment_keys(self._namespace, app, deployment)
        await Reclaimer(self._link, self._ring, keys, max_retries).abandoned(quiet_s=LEASE_S)

    # What happens

    def _trusts_leases(self) -> bool:
        return time.monotonic() >= self._trusts_leases_at

    def _link_up(self, _pipe: Pipe) -> None:
        """While Redis was away nobody could renew: all leases get time for that before any counts as lapsed."""
        self._trusts_leases_at = time.monotonic() + LEASE_S

    async def _listen(self, pipe: Pipe) -> None:
        await replies.subscribe(pipe, self.state.keys.events)
        self._generation = -1
        self._releaser.look_again()
        self._woken.set()

    def _on_event(self, event: bytes) -> None:
        self._releaser.hear(event)
        word, _, name = event.partition(b" ")
        if word == b"wake":
            self._scaler.wake(name.decode(errors="replace"))
        if word not in (b"status", b"assign", b"delayed", b"cron"):
            self._woken.set()
