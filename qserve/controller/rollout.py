"""One deployment's part of a turn: from the replicas that it has to those that it shall have. Pure.

New before old: whatever is replaced serves until its replacement does, where there is room for both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from qserve.controller.actions import Avoid, Close, CloseReason
from qserve.controller.placement import Setback, is_packed
from qserve.controller.status import SCALING, complete, failed, has_failed
from qserve.controller.view import ENDED, View, has_given_up
from qserve.spec import (
    Assignment,
    DeploymentSpec,
    DeploymentStatus,
    DeploymentStatusInfo,
    ExitCause,
    ReplicaRecord,
    ReplicaState,
    StatusTrigger,
)

_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 10.0
_MOST_DOUBLINGS = 10
_FIRST_REFUSAL_S = 1.0
_LONGEST_REFUSAL_S = 30.0
_FIRST_DISTRUST_S = 60.0
_LONGEST_DISTRUST_S = 3600.0
_MAKING_WAY = "New replicas have no room beside the old ones, which make way one by one; calls wait in the queue."


class Rollout:
    """Decides for one deployment.

    info    its status as of now, with the number of replicas that it shall have
    is_new  whether its deploy begins with this turn: what has ended by now says nothing of it
    """

    def __init__(self, spec: DeploymentSpec, info: DeploymentStatusInfo, view: View, *, is_new: bool) -> None:
        self._spec = spec
        self._is_new = is_new
        self._key = (spec.app, spec.name)
        self._view = view
        self._before = info
        self._info = info
        self._target = info.replicas
        self._health_failed = False
        self._start_failed = False
        self._backs_off = False

    def decide(self) -> DeploymentStatusInfo:
        """Put what is to be done into the view. Returns the new status."""
        acted = len(self._view.out)
        self._take_back_ended()
        if not self._info.started and any(self._is_up_to_date(a) for a in self._current()):
            self._info = self._info.model_copy(update={"started": True})
        if has_failed(self._spec, self._info, is_update=bool(self._old())):
            return self._give_up()
        self._tell_options()
        reason = self._fill()
        if self._is_at_a_loss():
            return self._give_up()
        self._let_old_go()
        self._let_surplus_go()
        if len(self._view.out) == acted:
            self._even_out()
        return self._judged(reason)

    # What has ended

    def _take_back_ended(self) -> None:
        """Take back the assignments of replicas that have ended or given up, and count them."""
        for assignment in self._view.assigned(self._key):
            record = self._view.record(assignment.replica_id)
            if record is None or not (record.state in ENDED or has_given_up(record)):
                continue
            self._view.unassign(assignment, forget=record.state in ENDED)
            if record.state is ReplicaState.FAILED:
                self._avoid(assignment.node_id, record)
            if record.cause is not ExitCause.REFUSED and self._is_own(assignment):
                self._count(record)

    def _is_own(self, assignment: Assignment) -> bool:
        """Whether the end of a replica says something of this deploy: it had the code and the options of now."""
        wanted = (self._spec.version, self._spec.config_version)
        is_wanted = (assignment.version, assignment.config_version) == wanted
        return is_wanted and not self._is_new and self._view.is_staying(assignment)

    def _count(self, record: ReplicaRecord) -> None:
        self._health_failed |= record.cause is ExitCause.HEALTH_CHECK
        self._start_failed = record.state is ReplicaState.FAILED
        update = {"failures": self._info.failures + 1, "failed_at_s": self._view.now, "message": record.message}
        self._info = self._info.model_copy(update=update)

    def _avoid(self, node_id: str, record: ReplicaRecord) -> None:
        """Have other nodes come first for a while."""
        before = self._view.observed.setbacks.get((*self._key, node_id))
        count = 1 if before is None else before.count + 1
        refused = record.cause is ExitCause.REFUSED
        first_s, longest_s = (
            (_FIRST_REFUSAL_S, _LONGEST_REFUSAL_S) if refused else (_FIRST_DISTRUST_S, _LONGEST_DISTRUST_S)
        )
        lasts_s = min(first_s * 2 ** min(count - 1, _MOST_DOUBLINGS), longest_s)
        setback = Setback(self._view.now + lasts_s, count, refused, record.message)
        self._view.rooms.set_back(self._key, node_id, setback)
        self._view.out.append(Avoid(*self._key, node_id, setback))

    def _give_up(self) -> DeploymentStatusInfo:
        """Start no more, and leave alone what serves, of whichever version, as far as it is wanted."""
        for assignment in self._current():
            if not self._view.serves(assignment.replica_id):
                self._view.unassign(assignment)
        self._let_old_go()
        self._let_surplus_go()
        serves = any(record.serves for record in self._view.there(self._key))
        if self._key in self._view.observed.stuck and not serves:
            self._view.out.append(Close(*self._key, CloseReason.FAILED))
        count, error = self._info.failures, self._info.message
        return self._failed(f"The deployment failed to start {count} times in a row. Error:\n{error}")

    # What is there

    def _current(self) -> list[Assignment]:
        """Replicas of the wanted version; those of a node that drains are on their way out."""
        view, version = self._view, self._spec.version
        return [a for a in view.assigned(self._key) if a.version == version and view.is_staying(a)]

    def _old(self) -> list[Assignment]:
        """Replicas of other versions, which serve until the new ones do."""
        view, version = self._view, self._spec.version
        return [a for a in view.assigned(self._key) if a.version != version and view.is_staying(a)]

    def _serving(self) -> list[Assignment]:
        """Replicas of the wanted version that take calls."""
        return [a for a in self._current() if self._view.serves(a.replica_id)]

    def _is_up_to_date(self, assignment: Assignment) -> bool:
        """Whether a replica serves with the options of now."""
        record = self._view.record(assignment.replica_id)
        wanted = self._spec.config_version
        return record is not None and record.serves and record.config_version == assignment.config_version == wanted

    def _is_worn(self, assignment: Assignment) -> bool:
        """Whether it serves, and wants to be replaced."""
        record = self._view.record(assignment.replica_id)
        return record is not None and record.serves and bool(record.retiring)

    # What to do

    def _is_doubtful(self) -> bool:
        """Whether replicas have failed with these options and none runs with them: no others are to be lost as well."""
        return self._info.failures > 0 and not self._info.started

    def _is_at_a_loss(self) -> bool:
        """Whether options are in doubt and no replica comes that would try them: all that are to be there serve."""
        current = self._current()
        is_stale = any(a.config_version != self._spec.config_version for a in current)
        is_coming = self._backs_off or not all(self._view.serves(a.replica_id) for a in current)
        return is_stale and not is_coming and self._is_doubtful()

    def _tell_options(self) -> None:
        """Have replicas reconfigured, so many at a time; the next ones only once those are done."""
        wanted = self._spec.config_version
        stale = [a for a in self._current() if a.config_version != wanted]
        serving = []
        for assignment in stale:
            record = self._view.record(assignment.replica_id)
            if record is None or record.config_version == wanted:  # it starts with them, or has them
                self._view.reconfigure(assignment, wanted)
            elif record.serves:
                serving.append(assignment)
        busy = [a for a in self._serving() if a.config_version == wanted and not self._is_up_to_date(a)]
        wave = max(int(self._spec.config.rolling_update_percentage * self._target), 1)
        for assignment in serving[:wave] if not busy and not self._is_doubtful() else ():
            self._view.reconfigure(assignment, wanted)

    def _fill(self) -> str:
        """Assign what is missing, and one more to replace what is worn. Returns what is in the way, or went wrong."""
        current = self._current()
        worn = [a for a in current if self._is_worn(a)]
        wanted = self._target + (1 if worn and self._target else 0)
        if len(current) >= wanted:
            return ""
        rounds = max(0, self._info.failures - 1) // max(1, self._target)
        backoff_s = min(_FIRST_BACKOFF_S * 2 ** min(rounds, _MOST_DOUBLINGS), _LONGEST_BACKOFF_S)
        if self._info.failures and self._view.now < self._info.failed_at_s + backoff_s:
            self._backs_off = True
            self._view.look_again(self._info.failed_at_s + backoff_s)
            return self._info.message
        for _ in range(len(current), wanted):
            node_id = self._view.rooms.place(self._spec)
            if node_id is None:
                return self._make_way(worn)
            self._view.assign(self._spec, node_id)
        return ""

    def _make_way(self, worn: list[Assignment]) -> str:
        """There is no room beside the old replicas: one of them goes first, when no other is going or coming."""
        self._view.look_again(self._view.rooms.setback_ends_s(self._key))
        reason = self._view.rooms.why_not(self._spec)
        replaceable = [*self._old(), *worn]
        is_going = self._view.leaving(self._key) > 0
        is_coming = any(not self._view.serves(a.replica_id) for a in self._current())
        if replaceable and self._room_comes():
            return reason
        if replaceable and not is_going and not is_coming:
            chosen = self._in_the_way(replaceable)
            for assignment in chosen:
                self._view.unassign(assignment)
            return f"{_MAKING_WAY} {reason}" if chosen else reason
        return f"{_MAKING_WAY} {reason}" if is_going or (replaceable and is_coming) else reason

    def _room_comes(self) -> bool:
        """Whether there is room once others have left that do so anyway: an update beside this one gives some back."""
        rooms = self._view.rooms
        gone = [(replica, rooms.leave(replica)) for replica in self._view.departing(self._key)]
        fits = bool(gone) and rooms.place(self._spec) is not None
        for replica, gpus in gone:
            rooms.take(replica, gpus)
        return fits

    def _in_the_way(self, replaceable: list[Assignment]) -> list[Assignment]:
        """The fewest replicas of one node without which there is room for a new one; none when that would not help."""
        of_node: dict[str, list[Assignment]] = defaultdict(list)
        for assignment in replaceable:
            of_node[assignment.node_id].append(assignment)
        rooms = self._view.rooms
        best: list[Assignment] = []
        for there in of_node.values():
            gone: list[tuple[Assignment, tuple[str, ...]]] = []
            fits = False
            for assignment in self._first_to_leave(there, len(there)):
                gone.append((assignment, rooms.leave(assignment)))
                if fits := rooms.place(self._spec) is not None:
                    break
            for assignment, gpus in gone:
                rooms.take(assignment, gpus)
            if fits and (not best or len(gone) < len(best)):
                best = [assignment for assignment, _ in gone]
        return best

    def _let_old_go(self) -> None:
        """Each new replica that serves frees an old one: together they are never fewer than wanted."""
        old = self._old()
        missing = max(0, self._target - len(self._serving()))
        for assignment in self._first_to_leave(old, len(old) - missing):
            self._view.unassign(assignment)
        for assignment in self._view.assigned(self._key) if not missing else ():
            if assignment.version != self._spec.version:  # those on nodes that drain, too
                self._view.unassign(assignment)

    def _let_surplus_go(self) -> None:
        """Those that are too many. One more than wanted may be there to replace another, until it serves."""
        current = self._current()
        serving = len(self._serving())
        is_moving = self._info.status is DeploymentStatus.HEALTHY and serving == self._target
        is_replacing = serving <= self._target and any(map(self._is_worn, current))
        extra = 1 if self._target and (is_moving or is_replacing) else 0
        for assignment in self._first_to_leave(current, len(current) - self._target - extra):
            self._view.unassign(assignment)

    def _first_to_leave(self, replicas: Iterable[Assignment], count: int) -> list[Assignment]:
        """Those that do not serve yet; worn ones; so that the rest is even; the idlest; where fewest are; the newest.

        Evenness goes before idleness: else the next thing to do would be to move a replica.
        """
        left = list(replicas)
        crowd = Counter(a.node_id for a in left)
        view, packed = self._view, is_packed(self._spec)

        def rank(assignment: Assignment) -> tuple[bool, bool, int, int, int, float, str]:
            record = view.record(assignment.replica_id)
            return (
                view.serves(assignment.replica_id),
                not self._is_worn(assignment),
                0 if packed else -crowd[assignment.node_id],
                view.observed.held.get(assignment.replica_id, 0),
                view.rooms.replicas_on(assignment.node_id),
                0.0 if record is None else -record.started_at_s,
                assignment.replica_id,
            )

        chosen = []
        for _ in range(min(count, len(left))):
            first = min(left, key=rank)
            left.remove(first)
            crowd[first.node_id] -= 1
            chosen.append(first)
        return chosen

    def _even_out(self) -> None:
        """Move a replica to a node that has two fewer: it came back, or is new. New before old, one at a time."""
        current = self._current()
        is_settled = self._info.status is DeploymentStatus.HEALTHY and not self._info.failures
        counts = Counter(a.node_id for a in current)
        most = max(counts.values(), default=0)
        if most < 2 or is_packed(self._spec) or not is_settled or len(current) != self._target:
            return
        if self._old() or self._view.leaving(self._key) or not all(map(self._is_up_to_date, current)):
            return
        self._view.look_again(self._view.rooms.setback_ends_s(self._key))
        node_id = self._view.rooms.place(self._spec, everywhere=False)
        # One at a time for a node, too: one that comes back empty must not load every model at once.
        if node_id is not None and most - counts[node_id] > 1 and not self._view.rooms.is_starting(node_id):
            self._view.assign(self._spec, node_id)

    # What is said of it

    def _judged(self, reason: str) -> DeploymentStatusInfo:
        serving, leaving = self._serving(), self._view.leaving(self._key)
        is_leaving = self._info.status is DeploymentStatus.DOWNSCALING and leaving > 0
        is_full = len(serving) >= self._target and all(map(self._is_up_to_date, serving))
        if is_full and not self._old() and not is_leaving and not self._old_serves():
            return self._shown(complete(self._info))
        message = reason or self._progress(len(serving), leaving if is_leaving else 0)
        update: dict[str, object] = {"message": message}
        if self._health_failed and self._info.status is DeploymentStatus.UPDATING:
            update |= {
                "status": DeploymentStatus.DEPLOY_FAILED,
                "status_trigger": StatusTrigger.HEALTH_CHECK_FAILED,
            }
        elif self._is_unhealthy(reason):
            update["status"] = DeploymentStatus.UNHEALTHY
            if self._info.status is not DeploymentStatus.UNHEALTHY:
                only_start = self._start_failed and not self._health_failed
                update["status_trigger"] = (
                    StatusTrigger.REPLICA_STARTUP_FAILED if only_start else StatusTrigger.HEALTH_CHECK_FAILED
                )
        return self._shown(self._info.model_copy(update=update))

    def _is_unhealthy(self, reason: str) -> bool:
        """Whether a deployment that has run lost replicas unasked, or cannot have those that it shall have.

        A node that drains is no such loss, as long as what it takes along comes up elsewhere.
        """
        status = self._info.status
        if status is DeploymentStatus.UNHEALTHY:
            return True
        if not self._info.started or (status is not DeploymentStatus.HEALTHY and status not in SCALING):
            return False
        serves = sum(record.serves for record in self._view.there(self._key))
        is_stranded = status is DeploymentStatus.HEALTHY and bool(reason) and serves < self._target
        return self._info.failures > 0 or self._view.lost(self._key) > 0 or is_stranded

    def _progress(self, serving: int, leaving: int) -> str:
        if self._info.failures:
            return self._info.message
        if leaving:
            return f"{leaving} replicas are leaving."
        if serving >= self._target and self._old():
            return f"{len(self._old())} replicas of the old version are leaving."
        return f"{serving} of {self._target} replicas are running."

    def _old_serves(self) -> bool:
        """Whether a replica of another version has not begun to leave: a deploy is over when only new code answers."""
        return any(r.version != self._spec.version and r.serves for r in self._view.there(self._key))

    def _failed(self, message: str) -> DeploymentStatusInfo:
        return self._shown(failed(self._info, message, self._before))

    def _shown(self, info: DeploymentStatusInfo) -> DeploymentStatusInfo:
        return info.model_copy(update={"replica_states": dict(self._view.states(self._key))})
