"""watch.lua: read a record and ask to be told of its reply, in one step."""

from __future__ import annotations

import pytest

from qserve.store import replies
from tests.store.queue import id_of


async def test_a_call_that_nobody_knows_has_no_record(queue):
    """Nothing is made by asking: a record without an entry would never be answered."""
    assert await watch(queue, 1) is None
    assert await queue.record(1) is None


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_watcher_is_noted_once(queue):
    """A process sweeps its open calls every few seconds; the record must not grow by it."""
    await queue.put(1)
    for _ in range(3):
        await watch(queue, 1)

    assert (await queue.record(1)).split(b"|")[1:] == [queue.inbox.encode()]


@pytest.mark.leaves(waiting=1, records=1)
@pytest.mark.parametrize("names", [["ab", "a"], ["a", "ab"]])
async def test_watchers_are_told_apart_by_their_whole_names(queue, names):
    """A name that begins with another's is another process."""
    await queue.put(1)
    for name in names:
        await replies.watch(queue.link, queue.keys, id_of(1), name)

    assert (await queue.record(1)).split(b"|")[1:] == [name.encode() for name in names]


@pytest.mark.leaves(replies=1)
async def test_a_reply_that_is_here_is_read_and_stays_as_it_is(queue, server):
    """A watcher that comes late gets the reply at once, and does not keep it from going in its time."""
    await queue.put(1)
    await queue.finish(*await queue.claim())
    await queue.leave("r1")
    reply = await queue.record(1)

    assert await watch(queue, 1) == reply
    assert await queue.record(1) == reply


@pytest.mark.leaves(waiting=1, records=1)
async def test_the_place_of_a_call_is_read_in_spite_of_watchers(queue):
    """Where the call stands and who waits for it share one record."""
    await queue.put(1)
    await watch(queue, 1)

    at = replies.place(queue.keys, await queue.record(1))
    assert (at.stream, at.entry_id) == (queue.keys.calls, (await queue.record(1))[2:].split(b"|")[0].decode())


async def watch(queue, number):
    """Watch with the test's inbox."""
    return await replies.watch(queue.link, queue.keys, id_of(number), queue.inbox)
