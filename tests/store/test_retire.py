"""retire.lua: a deleted deployment's queue goes when it is empty, and not before."""

from __future__ import annotations

import pytest

from qserve.store import calls


async def test_an_empty_queue_goes_with_all_that_belongs_to_it(queue, server):
    """What is left of a deleted deployment would be there for ever."""
    await queue.claim("r1")

    assert await calls.retire(queue.link, queue.keys)
    assert server.exists(queue.keys.calls, queue.keys.front) == 0


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_queue_with_a_waiting_call_stays(queue):
    """Its caller waits for an answer: the call is answered first."""
    await queue.put(1)

    assert not await calls.retire(queue.link, queue.keys)


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_a_queue_with_a_running_call_stays(queue):
    """Its replica must be able to finish it."""
    await queue.put(1)
    await queue.claim("r1")

    assert not await calls.retire(queue.link, queue.keys)


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_queue_with_a_call_handed_back_stays(queue):
    """The second stream belongs to the queue."""
    await queue.put(1)
    await queue.hand_back("r1", *await queue.claim("r1"))
    await queue.leave("r1")

    assert not await calls.retire(queue.link, queue.keys)


async def test_retiring_twice_is_retired(queue):
    """A controller that lost the answer asks again."""
    assert await calls.retire(queue.link, queue.keys)
    assert await calls.retire(queue.link, queue.keys)
