"""The end of a queue: what still waits in a deleted deployment's queue is answered, not dropped."""

from __future__ import annotations

from qserve.errors import BrokerRefused, SignatureError
from qserve.store import calls as store
from qserve.store.calls import Entry, Finished
from qserve.store.delayed import call_off
from qserve.store.link import Link
from qserve.store.reclaim import refuse
from qserve.wire import codec
from qserve.wire.keys import GROUP, DeploymentKeys
from qserve.wire.messages import open_call, seal_reply
from qserve.wire.signing import Direction, KeyRing

# Callers may add calls as fast as they are answered: what is left is for the next turn.
_MOST_AT_ONCE = 1000


async def answer_all(link: Link, ring: KeyRing, keys: DeploymentKeys, error: Exception) -> int:
    """Answer calls that wait, and calls that are not due yet: the deployment is deleted. Returns how many."""
    return await call_off(link, ring, keys, error) + await answer_waiting(link, ring, keys, error)


async def answer_waiting(link: Link, ring: KeyRing, keys: DeploymentKeys, error: Exception) -> int:
    """Answer calls that wait with this error, 1,000 or so at a time. Returns how many.

    Running calls are left to their replicas.
    """
    answered = 0
    while answered < _MOST_AT_ONCE and (entries := await _take(link, keys)):
        for entry in entries:
            await _answer(link, ring, keys, entry, error)
        answered += len(entries)
    await store.reap(link, keys, store.CLOSER)
    return answered


async def _take(link: Link, keys: DeploymentKeys) -> list[Entry]:
    """Waiting entries, and those that a closer before us took and did not answer."""
    found: list[Entry] = []
    for stream in (keys.front, keys.calls):
        try:
            reply = await link.call(
                "XREADGROUP", "GROUP", GROUP, store.CLOSER, "COUNT", store.MOST_PER_SWEEP, "STREAMS", stream, ">"
            )
        except BrokerRefused:  # the stream is gone
            continue
        found += store.read_entries(reply) or await store.pending(await link.ready(), stream, store.CLOSER)
    return found


async def _answer(link: Link, ring: KeyRing, keys: DeploymentKeys, entry: Entry, error: Exception) -> None:
    try:
        call = open_call(entry.envelope, ring.signer(Direction.CALL, keys.scope))
    except SignatureError as cause:
        await refuse(link, ring, keys, entry, cause)
        return
    reply = seal_reply(
        codec.encode_error(call.call_id, error, call.serializer), ring.signer(Direction.REPLY, keys.scope)
    )
    await store.finish_one(link, keys, Finished(entry, call.call_id, call.inbox, reply))
