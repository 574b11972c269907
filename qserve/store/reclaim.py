"""Calls of a replica that is gone: handed back at once, or answered when their attempts are used up."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from qserve.errors import CallRejected, ReplicaDiedError, SignatureError
from qserve.store import calls as store
from qserve.store.calls import Entry, Finished
from qserve.store.link import Link
from qserve.wire import codec
from qserve.wire.keys import DeploymentKeys
from qserve.wire.messages import Outcome, open_call, peek_call, seal_reply
from qserve.wire.signing import Direction, KeyRing

logger = logging.getLogger("qserve.store")


class Reclaimer:
    """Takes calls from replicas of one deployment that died, drained, or lost their lease.

    max_retries  how often a call may run again after a replica died under it
    """

    def __init__(self, link: Link, ring: KeyRing, keys: DeploymentKeys, max_retries: int) -> None:
        self._link = link
        self._ring = ring
        self._keys = keys
        self._max_retries = max_retries

    async def all_of(self, replica: str, cause: str, *, charge: bool = True) -> int:
        """Take everything the replica holds, drop its lease, and forget it. Returns how many calls it held.

        cause   how the replica ended, for the callers whose attempts are used up
        charge  whether the attempt counts: no for a drain
        """
        total = 0
        taken: set[bytes] = set()
        for stream in (self._keys.front, self._keys.calls):
            after = b""
            while page := await store.pending(await self._link.ready(), stream, replica, after=after):
                after = page[-1].entry_id
                # A replica that lives on without its lease takes them again at once: it has not died once more of them.
                entries = [entry for entry in page if _call_id(entry) not in taken]
                taken.update(map(_call_id, entries))
                await self.release(stream, replica, entries, cause, charge=charge)
                total += len(entries)
        await self._link.call("UNLINK", self._keys.lease(replica))
        await store.reap(self._link, self._keys, replica)
        return total

    async def abandoned(self, *, quiet_s: float = 0.0) -> int:
        """Take the calls of all that have no lease (any more). Returns how many calls they held.

        For those whom nobody reclaims: the worker is gone as well, and nobody knew any more what it hosted.

        quiet_s  leave alone who has asked for calls in the last so many seconds: it lives, though its worker may hang,
                 and would take the same calls again and again, until their attempts are used up
        """
        names = list(await store.holders(self._link, self._keys, quiet_s=quiet_s))
        leases = await self._link.call("MGET", *map(self._keys.lease, names)) if names else []
        total = 0
        for name, lease in zip(names, leases, strict=True):
            if lease is None:
                total += await self.all_of(name, "the loss of its lease", charge=name != store.CLOSER)
        return total

    async def release(self, stream: str, replica: str, entries: Sequence[Entry], cause: str, *, charge: bool) -> None:
        """Hand entries of one stream back, or answer those whose attempts are used up."""
        again: list[tuple[Entry, bytes]] = []
        for entry in entries:
            if (peeked := peek_call(entry.envelope)) is None:
                await store.quarantine(self._link, self._keys, entry, "its header cannot be read", None)
            elif charge and entry.attempt > self._max_retries:
                await self._give_up(entry, cause)
            else:
                again.append((entry, peeked[0]))
        if again:
            await store.hand_back(self._link, self._keys, stream, replica, again, charge=charge)

    async def _give_up(self, entry: Entry, cause: str) -> None:
        try:
            call = open_call(entry.envelope, self._ring.signer(Direction.CALL, self._keys.scope))
        except SignatureError as refusal:
            await refuse(self._link, self._ring, self._keys, entry, refusal)
            return
        error = ReplicaDiedError(
            f"The call '{self._keys.deployment}.{call.method}' was given up after {entry.attempt} attempts: its "
            f"replica died each time, at last by {cause}. It is kept as a dead letter."
        )
        await store.bury(self._link, self._keys, entry, call.call_id, str(error))
        reply = codec.encode_error(call.call_id, error, call.serializer, Outcome.DEAD)
        envelope = seal_reply(reply, self._ring.signer(Direction.REPLY, self._keys.scope))
        await store.finish_one(self._link, self._keys, Finished(entry, call.call_id, call.inbox, envelope))
        logger.warning("%s", error)


def _call_id(entry: Entry) -> bytes:
    """The call's id; of what cannot be read, the entry's."""
    peeked = peek_call(entry.envelope)
    return entry.entry_id if peeked is None else peeked[0]


async def refuse(link: Link, ring: KeyRing, keys: DeploymentKeys, entry: Entry, cause: SignatureError) -> None:
    """Quarantine an entry that cannot be trusted; tell the caller if it is the one that was put for its call."""
    logger.warning("Entry %s of %s was quarantined: %s", entry.entry_id.decode(), entry.stream, cause)
    answer = None
    if (peeked := peek_call(entry.envelope)) is not None:
        call_id, inbox = peeked
        error = CallRejected(f"The call to {keys.deployment!r} was refused unopened. {cause}")
        reply = seal_reply(codec.encode_error(call_id, error, 0), ring.signer(Direction.REPLY, keys.scope))
        answer = (call_id, inbox, reply)
    await store.quarantine(link, keys, entry, str(cause), answer)
