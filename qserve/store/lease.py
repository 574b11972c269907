"""The leadership lease. A reign has a term; writes carry it, so that a paused ex-leader can change nothing."""

from __future__ import annotations

from collections.abc import Callable

from qserve.config import LEASE_S
from qserve.store import scripts
from qserve.store.link import Link
from qserve.wire.keys import ClusterKeys

_MARGIN_S = 0.5


class LeaderLease:
    """One controller's claim to lead.

    clock  seconds of a monotonic clock of this process
    """

    def __init__(self, link: Link, keys: ClusterKeys, controller_id: str, clock: Callable[[], float]) -> None:
        self._link = link
        self._keys = keys
        self._id = controller_id
        self._clock = clock
        self._trusted_until = 0.0
        self.term = 0

    @property
    def holder(self) -> str:
        """What stands in the leader's key while this controller leads."""
        return f"{self.term}:{self._id}"

    @property
    def held(self) -> bool:
        """Whether this controller may act as the leader now."""
        return bool(self.term) and self._clock() < self._trusted_until

    async def renew(self) -> bool:
        """Take the leadership or go on with it. Returns whether it is held. Raises TransportError."""
        # Counted from the start of the attempt: a slow answer must not stretch the lease.
        started = self._clock()
        names = [self._keys.leader, self._keys.term]
        self.term = await self._link.script(scripts.LEAD, names, [self._id, int(LEASE_S * 1000)])
        self._trusted_until = started + LEASE_S - _MARGIN_S if self.term else 0.0
        return self.held

    def lose(self) -> None:
        """A write was refused: another one leads, or nobody does."""
        self.term = 0
        self._trusted_until = 0.0

    async def resign(self) -> None:
        """Let a stand-by lead at once. Does nothing when this controller does not lead."""
        if self.term:
            holder = self.holder
            self.lose()
            await self._link.script(scripts.RESIGN, [self._keys.leader], [holder])
