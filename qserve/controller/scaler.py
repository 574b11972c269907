"""Autoscaling at work: looks at queues, has the deployments' policies decide, remembers what they did and tells why.

It reads, and returns the changes for the leader to write. What it remembers stands in Redis, so that another leader
goes on from there. docs/autoscaling.md, for users.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TypeAlias

from qserve.controller.placement import Key
from qserve.controller.watched import Watched
from qserve.errors import BrokerRefused, TransportError
from qserve.spec import AppSpec, Assignment, DeploymentSpec, ReplicaRecord, ScalingRecord
from qserve.store import calls
from qserve.store.calls import Load
from qserve.store.pipe import Pipe
from qserve.store.snapshot import RecordHash, Snapshot
from qserve.store.state import Change, ClusterState
from qserve.wire.keys import deployment_keys

# What a look at a deployment has shown. None: nothing new. An error: this one could not be looked at.
Found: TypeAlias = Load | BrokerRefused | None


@dataclass(frozen=True, slots=True)
class Scaled:
    """How many replicas each autoscaled deployment shall have, and what is to be written of it."""

    targets: dict[Key, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)


class Scaler:
    """Decides for the autoscaled deployments of a namespace; only the leader asks it.

    Those of `fixed` applications are not its own; those that are paused keep the replicas that they have.
    """

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._records = RecordHash(ScalingRecord)
        self._watched: dict[Key, Watched] = {}
        self._has_read = False

    async def turn(self, seen: Snapshot, now: float) -> Scaled:
        """Look at what is due, decide, and say what is to be written. Trouble with Redis holds the last decisions.

        now  seconds of the epoch
        Raises TransportError when it is not known yet how many replicas a deployment has: nobody may guess.
        """
        wanted = _autoscaled(seen.apps)
        has_left = bool(self._watched.keys() - wanted.keys())
        is_new = not self._has_read or bool(wanted.keys() - self._watched.keys())
        watched = {key: self._watched.get(key) or self._watch(*wanted[key]) for key in wanted}
        _meet(watched, wanted, now)
        _see(watched, seen, now)
        due = [each for each in watched.values() if not each.spec.paused and not each.due_in_s(now)]
        gone: list[Change] = []
        if due or is_new or has_left:
            try:
                stored, found = await self._read(due)
                gone = await self._gone(stored, seen.apps)
                for each in watched.values():
                    each.remember(stored.get(each.path))
                _meet(watched, wanted, now)
                await asyncio.gather(*(self._decide(each, look, now) for each, look in zip(due, found, strict=True)))
            except TransportError as error:
                if is_new:
                    raise
                for each in due:
                    each.could_not_look(error, now)
        self._watched, self._has_read = watched, True
        changes = [change for each in watched.values() for change in each.changes(self._state.keys, now)]
        return Scaled({key: each.record.target for key, each in watched.items()}, [*gone, *changes])

    def due_in_s(self, now: float) -> float:
        """In how many seconds it wants to look again although nothing has changed; inf: never."""
        return min((each.due_in_s(now) for each in self._watched.values() if not each.spec.paused), default=inf)

    def wake(self, path: str) -> None:
        """A call has come to a deployment that was asleep: look at it now."""
        for each in self._watched.values():
            if each.path == path:
                each.wake()

    def _watch(self, app: AppSpec, spec: DeploymentSpec) -> Watched:
        return Watched(app, spec, deployment_keys(self._state.keys.namespace, app.name, spec.name))

    async def _read(self, due: Sequence[Watched]) -> tuple[dict[str, ScalingRecord], list[Found]]:
        """What is remembered of all deployments, and what is found at those that are due; one round trip."""
        pipe = await self._state.link.ready()
        remembered = pipe.call("HGETALL", self._state.keys.scaling)
        found = await asyncio.gather(*(_look_at(pipe, each) for each in due))
        return self._records.read(await remembered), found

    async def _decide(self, watched: Watched, found: Found, now: float) -> None:
        if found is None:
            watched.found_nothing_new(now)
            return
        if isinstance(found, BrokerRefused):
            watched.could_not_look(found, now)
            return
        await watched.decide(found, now)
        if watched.may_sleep and not found.waiting + found.running:
            channel, event = self._state.keys.events, f"wake {watched.path}"
            watched.is_asleep = await calls.fall_asleep(self._state.link, watched.keys, channel, event)

    async def _gone(self, stored: Mapping[str, ScalingRecord], apps: Mapping[str, AppSpec]) -> list[Change]:
        """What is to be forgotten: all of deployments that are gone, or that are not autoscaled any more."""
        kept = {f"{app.name}.{spec.name}" for app in apps.values() for spec in app.deployments if _is_autoscaled(spec)}
        changes = []
        for path in stored.keys() - kept:
            app, _, name = path.partition(".")
            # One that cannot be trusted is not among `apps`, but it is there, and is left as it is.
            if app in apps or not await self._state.link.call("HEXISTS", self._state.keys.apps, app):
                changes += [
                    Change(self._state.keys.scaling, path, None),
                    Change(self._state.keys.decisions(app, name), "", None),
                ]
        return changes


async def _look_at(pipe: Pipe, watched: Watched) -> Found:
    """What there is to do: a glance where that is enough, all of it where it is not."""
    watched.begin_look()
    try:
        if watched.is_asleep:
            watched.is_asleep = await calls.is_asleep(pipe, watched.keys)
            if watched.is_asleep:
                return None if watched.may_glance else Load(0, 0, 0.0, None)
        elif watched.may_glance and await calls.is_empty(pipe, watched.keys):
            return None
        return await calls.load_of(pipe, watched.keys)
    except BrokerRefused as error:
        return error


def _is_autoscaled(spec: DeploymentSpec) -> bool:
    return spec.config.autoscaling_config is not None


def _autoscaled(apps: Mapping[str, AppSpec]) -> dict[Key, tuple[AppSpec, DeploymentSpec]]:
    return {
        (app.name, spec.name): (app, spec)
        for app in apps.values()
        if not app.fixed
        for spec in app.deployments
        if _is_autoscaled(spec)
    }


def _meet(watched: Mapping[Key, Watched], wanted: Mapping[Key, tuple[AppSpec, DeploymentSpec]], now: float) -> None:
    for key, (app, spec) in wanted.items():
        watched[key].meet(app, spec, now)


def _see(watched: Mapping[Key, Watched], seen: Snapshot, now: float) -> None:
    """Show each deployment its replicas: those that nodes have recorded, and those that they are told to run."""
    recorded: defaultdict[Key, list[ReplicaRecord]] = defaultdict(list)
    assigned: defaultdict[Key, list[Assignment]] = defaultdict(list)
    for record in seen.replicas.values():
        recorded[record.app, record.deployment].append(record)
    for assignment in seen.assignments.values():
        assigned[assignment.app, assignment.deployment].append(assignment)
    for key, each in watched.items():
        each.see(recorded[key], assigned[key], now)
