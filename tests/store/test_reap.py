"""reap.lua: a consumer goes when it holds nothing and has no lease. Deleting it sooner would lose its calls."""

from __future__ import annotations

import pytest

from qserve.errors import BrokerRefused
from qserve.store import calls
from qserve.wire.keys import GROUP


async def test_a_replica_that_holds_nothing_is_forgotten_in_both_streams(queue, server):
    """Consumers are never removed by the server: one for each restart adds up to millions."""
    await queue.claim("r1")

    assert await calls.reap(queue.link, queue.keys, "r1")

    for stream in (queue.keys.front, queue.keys.calls):
        assert server.xinfo_consumers(stream, GROUP) == []


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_a_replica_that_holds_a_call_stays(queue):
    """XGROUP DELCONSUMER drops what the consumer holds: the call would be lost."""
    await queue.put(1)
    await queue.claim("r1")

    assert not await calls.reap(queue.link, queue.keys, "r1")
    assert await queue.lengths() == (1, 1)


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_a_replica_that_holds_a_call_of_the_front_stays(queue):
    """A look at one of the two streams is not enough."""
    await queue.put(1)
    await queue.hand_back("r1", *await queue.claim("r1"))
    await queue.leave("r1")
    await queue.claim("r2")

    assert not await calls.reap(queue.link, queue.keys, "r2")


@pytest.mark.leaves(leases=1, consumers=1)
async def test_a_replica_with_its_lease_stays(queue, server):
    """It lives, and may be given a call at any moment."""
    await queue.put(1)
    await queue.finish(*await queue.claim("r1"))
    await queue.forget(1)
    server.set(queue.keys.lease("r1"), "1", px=60_000)

    assert not await calls.reap(queue.link, queue.keys, "r1")


async def test_a_queue_that_is_gone_is_no_obstacle(queue):
    """The deployment was deleted before its last replica ended."""
    assert await calls.retire(queue.link, queue.keys)

    assert await calls.reap(queue.link, queue.keys, "r1")


async def test_doubt_is_no_reason_to_forget(queue, server):
    """When the server cannot say what is held, nothing is deleted."""
    server.delete(queue.keys.front)
    server.set(queue.keys.front, "junk")

    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        await calls.reap(queue.link, queue.keys, "r1")
    server.delete(queue.keys.front)
