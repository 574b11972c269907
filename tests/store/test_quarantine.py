"""quarantine.lua: an entry that cannot be trusted leaves the queue, its bytes are kept, and it speaks for no other."""

from __future__ import annotations

import pytest

from qserve.errors import CallRejected
from qserve.store import calls, replies
from qserve.store.calls import Entry
from qserve.wire import codec
from qserve.wire.messages import seal_reply
from qserve.wire.signing import Direction
from tests.store.queue import id_of


@pytest.mark.leaves(replies=1, quarantined=1)
async def test_the_caller_of_a_refused_call_is_told(queue, ear):
    """It has another secret key, or an older version: it must hear that, not wait for ever."""
    await queue.put(1)
    (entry,) = await queue.claim()

    assert await calls.quarantine(queue.link, queue.keys, entry, "its signature is wrong", refusal(queue, 1))

    with pytest.raises(CallRejected):
        await queue.answer(1)
    assert len(await ear.heard()) == 1
    assert await queue.lengths() == (0, 0)
    await queue.leave("r1")


@pytest.mark.leaves(replies=1, quarantined=1)
async def test_whoever_watches_a_refused_call_is_told_too(queue, ear):
    """Another process waits for the result as its argument."""
    await queue.put(1)
    await replies.watch(queue.link, queue.keys, id_of(1), queue.inbox)
    (entry,) = await queue.claim()
    call_id, _, reply = refusal(queue, 1)

    await calls.quarantine(queue.link, queue.keys, entry, "why", (call_id, "somebody-else", reply))

    assert len(await ear.heard()) == 1
    await queue.leave("r1")


@pytest.mark.leaves(pending=1, records=1, consumers=1, quarantined=1)
async def test_a_forged_entry_cannot_answer_the_call_that_it_names(queue, ear, server):
    """The id of a call is no secret: whoever writes it into an entry of his own must not fail that call."""
    await queue.put(1)
    server.xadd(queue.keys.calls, {"c": queue.sealed(1)[1][:-1] + b"!"})
    _, forged = await queue.claim()

    await calls.quarantine(queue.link, queue.keys, forged, "its signature is wrong", refusal(queue, 1))

    assert not replies.is_reply(await queue.record(1))
    assert await ear.heard() == []


@pytest.mark.leaves(quarantined=1)
async def test_what_is_kept_says_why_and_holds_the_first_bytes(queue, server):
    """Somebody has to find out who wrote it, and a huge entry must not be kept whole."""
    server.xadd(queue.keys.calls, {"c": b"junk" * 10_000})
    (entry,) = await queue.claim()

    await calls.quarantine(queue.link, queue.keys, entry, "no header", None)

    ((_, kept),) = server.xrange(queue.keys.quarantine)
    assert kept == {b"entry": entry.entry_id, b"reason": b"no header", b"raw": (b"junk" * 10_000)[:4096]}
    await queue.leave("r1")


@pytest.mark.leaves(quarantined=1)
async def test_an_entry_is_kept_once(queue, server):
    """Two processes may refuse the same entry: its replica, and its worker after the replica's death."""
    server.xadd(queue.keys.calls, {"c": b"junk"})
    (entry,) = await queue.claim()

    assert await calls.quarantine(queue.link, queue.keys, entry, "no header", None)
    assert not await calls.quarantine(queue.link, queue.keys, entry, "no header", None)
    await queue.leave("r1")


async def test_the_quarantine_is_capped(queue, server):
    """Whoever floods a queue with junk must not fill the memory through what is kept of it."""
    with server.pipeline() as many:
        for number in range(1200):
            many.xadd(queue.keys.quarantine, {"raw": str(number)})
        many.execute()
    entry_id = server.xadd(queue.keys.calls, {"c": b"junk"})

    await calls.quarantine(queue.link, queue.keys, Entry(queue.keys.calls, entry_id, b"junk", 1), "no header", None)

    assert server.xlen(queue.keys.quarantine) <= 1100
    server.delete(queue.keys.quarantine)


def refusal(queue, number):
    """What the caller of a refused call is told."""
    reply = codec.encode_error(id_of(number), CallRejected("refused unopened"), 0)
    envelope = seal_reply(reply, queue.ring.signer(Direction.REPLY, queue.keys.scope))
    return id_of(number), queue.inbox, envelope
