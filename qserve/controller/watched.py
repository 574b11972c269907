"""One autoscaled deployment as the scaler knows it: what was seen of it, what was decided, when to look again."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from math import floor
from typing import Any

from qserve.controller.autoscale import Verdict, look_every_s
from qserve.controller.meter import Meter, Sample
from qserve.controller.policies import Asked, PolicyError
from qserve.options import AutoscalingConfig, AutoscalingContext
from qserve.spec import AppSpec, Assignment, Decision, DeploymentSpec, ReplicaRecord, ScalingRecord
from qserve.store.calls import Load
from qserve.store.state import Change
from qserve.wire.keys import ClusterKeys, DeploymentKeys

logger = logging.getLogger("qserve.autoscaler")

# A glance is one plain command. Every so many times all there is to see is looked at, for a glance misses what was
# handed back.
_GLANCES = 11
# No deployment is left unlooked at for longer.
_LONGEST_PAUSE_S = 10.0
# A policy's memory is written this often at the most, as long as the target stays.
_WRITE_EVERY_S = 10.0
# Troubles that differ each time are told no more often than this.
_SAY_EVERY_S = 60.0
_MOST_STATE_BYTES = 64 * 1024
# In the record's policy_state, beside what the policy returned: whose state it is, and how long replicas took to start.
_KEPT = "_kept"


class Watched:
    """Created when the deployment is first seen; `meet` tells what is wanted of it, and `record` is what is decided."""

    def __init__(self, app: AppSpec, spec: DeploymentSpec, keys: DeploymentKeys) -> None:
        self.spec = spec
        self.keys = keys
        self.record = ScalingRecord(target=self._within(spec.replicas), deploy_id=app.deploy_id)
        self.is_asleep = False
        self.looks_at_s = 0.0
        self._asked = Asked(self.config)
        self._meter = Meter()
        self._serving: tuple[str, ...] = ()
        self._has_replicas = False
        self._starting: dict[str, float] = {}
        self._glances = _GLANCES
        self._was_woken = False
        self._written: ScalingRecord | None = None
        self._written_at_s = 0.0
        self._decisions: list[Decision] = []
        self._said, self._said_at_s = "", 0.0
        self._trouble = ""
        self._cold_start_s: float | None = None

    @property
    def config(self) -> AutoscalingConfig:
        """How it is to be scaled."""
        return self.spec.config.autoscaling_config or AutoscalingConfig()

    @property
    def path(self) -> str:
        """Application and deployment."""
        return f"{self.spec.app}.{self.spec.name}"

    # What is there

    def remember(self, stored: ScalingRecord | None) -> None:
        """Go on from what stands in Redis, if it is not what we wrote: another leader did, or our write was lost."""
        if stored is not None and stored != self._written:
            self.record = self._written = stored
            cold_start_s = self._kept().get("cold_start_s")
            self._cold_start_s = cold_start_s if isinstance(cold_start_s, float) else None
        elif stored is None:
            self._written = None

    def meet(self, app: AppSpec, spec: DeploymentSpec, now: float) -> None:
        """See what is wanted of it. After another deploy the target is kept, within the limits of now."""
        before, self.spec = self.spec, spec
        if spec.config.autoscaling_config != before.config.autoscaling_config:
            self._asked = Asked(self.config)
        if app.deploy_id == self.record.deploy_id:
            return
        self.wake()
        self._said, self._said_at_s = "", 0.0
        self.record = self.record.model_copy(update={"deploy_id": app.deploy_id})
        limits = f"{self.config.min_replicas}..{self.config.max_replicas} replicas"
        self._aim(self._within(self.record.target), f"deployed again, with {limits}", now)

    def see(self, replicas: Iterable[ReplicaRecord], assigned: Iterable[Assignment], now: float) -> None:
        """Take its replicas in, and how long those that start take to do so."""
        records = list(replicas)
        expected = {assignment.replica_id for assignment in assigned}
        had_replicas, self._has_replicas = self._has_replicas, bool(records or expected)
        if had_replicas and not self._has_replicas and not self.record.target:
            self.looks_at_s = 0.0  # the last one has left: it may sleep now
        serving = {record.replica_id for record in records if record.serves}
        for replica_id in serving & self._starting.keys():
            took_s, before_s = now - self._starting[replica_id], self._cold_start_s
            self._cold_start_s = took_s if before_s is None else (took_s + before_s) / 2
        self._starting = {r: self._starting.get(r, now) for r in expected - serving}
        self._serving = tuple(sorted(serving))

    def wake(self) -> None:
        """Something has happened: look at all of it, now; and once more if a look is on its way."""
        self.is_asleep = False
        self._glances = _GLANCES
        self.looks_at_s = 0.0
        self._was_woken = True

    # Looking

    def begin_look(self) -> None:
        """A look is on its way: what happens from now on it may not show."""
        self._was_woken = False

    @property
    def may_glance(self) -> bool:
        """Whether one plain command shows that nothing has changed: it was idle, and its policy sees only the queue."""
        return self._glances < _GLANCES and self._asked.is_built_in

    def found_nothing_new(self, now: float) -> None:
        """A glance has shown nothing new."""
        self._glances += not self.is_asleep
        self._meter.add(Sample(now, 0, 0), self.config.look_back_period_s)
        self._look_again(now, idle=True)

    async def decide(self, load: Load, now: float) -> None:
        """Have the policy decide on what was found. A policy that fails changes nothing, and is told of once."""
        sample = Sample(now, load.waiting, load.running, load.oldest_wait_s, load.arrived)
        self._meter.add(sample, self.config.look_back_period_s)
        self._trouble = ""
        try:
            verdict = await self._asked.decide(self._meter.tell(self._context(now)))
            if verdict is not None:
                self._apply(verdict, now)
        except PolicyError as error:
            self._hold(str(error), now)
        is_at_least = len(self._serving) == self.record.target == self.config.min_replicas
        idle = is_at_least and sample.total == 0 and not self._meter.arrival_rate
        self._glances = 0 if idle else _GLANCES
        self._look_again(now, idle=idle)

    def could_not_look(self, error: Exception, now: float) -> None:
        """It could not be looked at: what was decided last holds."""
        if str(error) != self._trouble:
            target = self.record.target
            logger.warning("%s cannot be looked at, and keeps its %d replicas: %s", self.path, target, error)
        self._trouble = str(error)
        self._look_again(now, idle=True)

    def due_in_s(self, now: float) -> float:
        """In how many seconds it is to be looked at; at once when the clock was put back."""
        left_s = self.looks_at_s - now
        return left_s if 0 < left_s <= _LONGEST_PAUSE_S else 0.0

    @property
    def may_sleep(self) -> bool:
        """Whether it has no replicas and shall have none: then its queue may go, if it is empty."""
        return not self.is_asleep and not self._has_replicas and not self.record.target

    def _look_again(self, now: float, *, idle: bool) -> None:
        """On a grid, so that many deployments are looked at in one round trip."""
        every_s = look_every_s(self.config, idle=idle)
        self.looks_at_s = 0.0 if self._was_woken else (floor(now / every_s) + 1) * every_s

    # Deciding

    def _context(self, now: float) -> AutoscalingContext:
        config, record = self.config, self.record
        is_its_own = self._kept().get("policy") == self._asked.path
        return AutoscalingContext(
            deployment_name=self.spec.name,
            app_name=self.spec.app,
            config=config,
            current_num_replicas=len(self._serving),
            target_num_replicas=record.target,
            total_num_requests=0,
            total_queued_requests=0,
            total_running_requests=0,
            current_time=now,
            capacity_adjusted_min_replicas=config.min_replicas,
            capacity_adjusted_max_replicas=config.max_replicas,
            running_replicas=self._serving,
            policy_state={n: v for n, v in record.policy_state.items() if n != _KEPT} if is_its_own else {},
            last_scale_up_time=record.last_scale_up_time,
            last_scale_down_time=record.last_scale_down_time,
            max_ongoing_requests=self.spec.config.max_ongoing_requests,
            cold_start_s=self._cold_start_s,
        )

    def _apply(self, verdict: Verdict, now: float) -> None:
        """Make the verdict the record. Raises PolicyError for a state that cannot be kept."""
        state = {**verdict.state, _KEPT: {"policy": self._asked.path, "cold_start_s": self._cold_start_s}}
        record = self.record.model_copy(update={"policy_state": state})
        if not self._asked.is_built_in:
            _check_size(record)
        self.record = record
        self._aim(verdict.target, verdict.reason, now)

    def _aim(self, target: int, reason: str, now: float) -> None:
        before = self.record.target
        if target == before:
            return
        changed = "last_scale_up_time" if target > before else "last_scale_down_time"
        self.record = self.record.model_copy(update={"target": target, changed: now})
        if target:
            self.is_asleep = False
        self._decisions.append(Decision(at_s=now, before=before, after=target, reason=reason))
        logger.info("%s goes from %d to %d replicas: %s.", self.path, before, target, reason)

    def _hold(self, trouble: str, now: float) -> None:
        """Keep the last decision, and say once why."""
        if self._asked.is_built_in:
            self.record = self.record.model_copy(update={"policy_state": {}})
        if trouble == self._said or now - self._said_at_s < _SAY_EVERY_S:
            return
        self._said, self._said_at_s = trouble, now
        target = self.record.target
        reason = f"the policy {self._asked.path} has failed, so the last decision holds: {trouble}"
        self._decisions.append(Decision(at_s=now, before=target, after=target, reason=reason))
        logger.warning("%s keeps its %d replicas: %s.", self.path, target, reason)

    def _within(self, number: int) -> int:
        return min(max(number, self.config.min_replicas), self.config.max_replicas)

    # Remembering

    def changes(self, keys: ClusterKeys, now: float) -> list[Change]:
        """What is to be written, as if it were written then: if it is not, `remember` takes it back."""
        app, name = self.spec.app, self.spec.name
        out = [Change(keys.decisions(app, name), "", decision.to_json()) for decision in self._decisions]
        self._decisions.clear()
        if self._is_to_be_written(now):
            raw = self.record.to_json()
            self._written, self._written_at_s = ScalingRecord.model_validate_json(raw), now
            out.append(Change(keys.scaling, self.path, raw))
        return out

    def _is_to_be_written(self, now: float) -> bool:
        record, written = self.record, self._written
        if written is None or (record.target, record.deploy_id) != (written.target, written.deploy_id):
            return True
        if self.may_glance:  # it is idle: what its policy remembers of that is worth nothing
            return False
        return now - self._written_at_s >= _WRITE_EVERY_S and record != written

    def _kept(self) -> dict[str, Any]:
        """Whose state the record's is, and how long replicas took to start."""
        kept = self.record.policy_state.get(_KEPT)
        return kept if isinstance(kept, dict) else {}


def _check_size(record: ScalingRecord) -> None:
    """Raises PolicyError when the policy's state cannot be kept."""
    try:
        size_bytes = len(record.to_json())
    except ValueError as error:
        raise PolicyError(f"its state is not JSON: {error}") from error
    if size_bytes > _MOST_STATE_BYTES:
        raise PolicyError(f"its state has {size_bytes} bytes, and may have {_MOST_STATE_BYTES}")
