"""Taking calls: handed-back ones first, never more than asked for, and through a group that went missing."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from qserve.errors import BrokerUnavailable
from qserve.store import calls
from qserve.store.link import Link
from qserve.wire.keys import GROUP
from tests.store.queue import numbers_of
from tests.store.until import until


@pytest.mark.leaves(pending=4, records=4, consumers=1)
async def test_calls_handed_back_are_given_out_first(queue):
    """They have waited once already."""
    await queue.put(1, 2)
    await queue.hand_back("r1", *await queue.claim("r1"))
    await queue.leave("r1")
    await queue.put(3, 4)

    entries = await queue.claim("r2", count=2)

    assert numbers_of(entries) == [1, 2, 3, 4]  # the count is each stream's
    assert [entry.stream for entry in entries] == [queue.keys.front] * 2 + [queue.keys.calls] * 2


@pytest.mark.leaves(pending=2, waiting=1, records=3, consumers=1)
async def test_no_more_calls_are_taken_than_there_are_slots(queue):
    """What a replica cannot start, another one could."""
    await queue.put(1, 2, 3)

    assert numbers_of(await queue.claim(count=2)) == [1, 2]


@pytest.mark.leaves(pending=2, records=2, consumers=2)
async def test_each_call_is_given_to_one_replica(queue):
    """Two that run the same call would be a duplicate without any fault."""
    await queue.put(1, 2)

    assert numbers_of(await queue.claim("r1", count=1)) == [1]
    assert numbers_of(await queue.claim("r2")) == [2]


async def test_an_empty_queue_gives_nothing(queue):
    """Without a wait, the answer is at once."""
    assert await queue.claim() == []
    await queue.leave("r1")


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_an_idle_replica_is_woken_by_the_first_call(queue, settings, link):
    """It waits in the server: nothing is polled, and the call starts at once."""
    reader = Link(link.endpoint, "test-reader")
    waiting = asyncio.create_task(calls.claim(await reader.ready(), queue.keys, "r1", 1, 5000))
    await is_blocked(link)

    await queue.put(1)

    assert numbers_of(await waiting) == [1]
    await reader.close()


@pytest.mark.leaves(pending=1, records=1, consumers=1)
@pytest.mark.parametrize("missing", ["front", "calls", "both"])
async def test_a_missing_group_is_made_again_and_nothing_is_skipped(queue, server, missing):
    """After a FLUSH, a restart without persistence or an XGROUP DESTROY the replica goes on by itself."""
    await queue.put(1)
    for stream in (queue.keys.front, queue.keys.calls):
        if missing == "both" or stream.endswith(missing):
            server.xgroup_destroy(stream, GROUP)

    assert await queue.claim() == []
    assert numbers_of(await queue.claim()) == [1]


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_missing_streams_are_made_again(queue, server):
    """A server that came back empty takes calls as soon as a replica has asked for some."""
    server.delete(queue.keys.front, queue.keys.calls)

    assert await queue.claim() == []
    assert await queue.put(1) == [1, 0]
    assert numbers_of(await queue.claim()) == [1]


async def test_a_queue_that_vanishes_under_a_waiting_replica_is_noticed(queue, server, link):
    """The server tells it so, one way or another, and the next attempt makes the queue again."""
    reader = Link(link.endpoint, "test-reader")
    waiting = asyncio.create_task(calls.claim(await reader.ready(), queue.keys, "r1", 1, 5000))
    await is_blocked(link)

    server.delete(queue.keys.front, queue.keys.calls)

    with suppress(BrokerUnavailable):
        assert await waiting == []
    assert await calls.claim(await reader.ready(), queue.keys, "r1", 1, 0) == []
    assert await calls.claim(await reader.ready(), queue.keys, "r1", 1, 0) == []
    assert server.exists(queue.keys.front, queue.keys.calls) == 2
    await queue.leave("r1")
    await reader.close()


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_deleted_entries_are_not_given_out(queue, server):
    """An XDEL by hand takes a waiting call away; what is behind it goes on."""
    await queue.put(1, 2)
    ((first, _), _) = server.xrange(queue.keys.calls)
    server.xdel(queue.keys.calls, first)
    await queue.forget(1)

    assert numbers_of(await queue.claim()) == [2]


def test_a_reply_with_deleted_entries_is_read_without_them():
    """A replica that reads its own pending entries gets holes for those that are gone."""
    reply = [[b"calls", [[b"1-0", None], [b"2-0", [b"c", b"envelope", b"a", b"2"]]]]]

    assert calls.read_entries(reply) == [calls.Entry("calls", b"2-0", b"envelope", 2)]


async def test_opening_a_queue_twice_leaves_what_is_there(queue):
    """Every replica opens its queue when it starts."""
    await queue.put(1)
    await queue.open()

    assert await queue.lengths() == (1, 0)
    await queue.finish(*await queue.claim())
    await queue.forget(1)
    await queue.leave("r1")


@pytest.mark.leaves(pending=2, waiting=1, records=3, consumers=1)
async def test_the_depth_counts_both_streams(queue):
    """It is what the status shows, and what replicas are scaled by."""
    await queue.put(1, 2, 3)
    await queue.hand_back("r1", *await queue.claim("r1", count=1))
    await queue.leave("r1")
    await queue.claim("r2", count=1)

    assert await calls.depth(queue.link, queue.keys) == calls.Depth(waiting=1, running=2)
    assert await calls.holders(queue.link, queue.keys) == {"r2": 2}


async def test_a_queue_that_is_not_there_is_empty(queue):
    """The status of a deployment that was just deleted is asked for like any other."""
    await calls.retire(queue.link, queue.keys)

    assert await calls.depth(queue.link, queue.keys) == calls.Depth(waiting=0, running=0)
    assert await calls.holders(queue.link, queue.keys) == {}


async def is_blocked(link):
    """Wait until a replica waits in the server."""
    blocked = False

    async def look() -> None:
        nonlocal blocked
        while not blocked:
            blocked = b"flags=b" in (await link.call("CLIENT", "LIST"))

    looking = asyncio.create_task(look())
    await until(lambda: blocked, what="a blocked client")
    await looking
