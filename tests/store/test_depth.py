"""depth.lua: what a deployment has to do, in one step; the autoscaler decides on nothing else."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from qserve.store import calls
from tests.store.until import until


async def load(queue) -> calls.Load:
    """One look."""
    return await calls.load_of(await queue.pipe(), queue.keys)


async def test_an_empty_queue_has_nothing_to_do(queue):
    """It has never had a call."""
    assert await load(queue) == calls.Load(waiting=0, running=0, oldest_wait_s=0.0, arrived=0)


async def test_a_queue_that_is_gone_has_nothing_to_do(queue):
    """Deleted, or asleep: no error, and nobody has counted."""
    await calls.retire(queue.link, queue.keys)

    assert await load(queue) == calls.Load(0, 0, 0.0, None)


@pytest.mark.leaves(waiting=2, pending=1, records=3, consumers=1)
async def test_calls_wait_until_a_replica_has_them(queue):
    """Both streams count."""
    await queue.put(1, 2, 3)
    entries = await queue.claim("r1", count=2)
    await queue.hand_back("r1", entries[0])

    found = await load(queue)

    assert (found.waiting, found.running) == (2, 1)
    assert await calls.depth(queue.link, queue.keys) == calls.Depth(waiting=2, running=1)


@pytest.mark.leaves(replies=2, records=2, waiting=2)
async def test_calls_that_were_answered_still_count_as_arrived(queue):
    """Arrivals less what is left are completions: so the service time is measured without a counter anywhere."""
    await queue.put(1, 2, 3)
    entries = await queue.claim("r1")
    await queue.finish(entries[2], entries[0])
    await queue.hand_back("r1", entries[1])
    await queue.put(4)
    await queue.leave("r1")

    found = await load(queue)

    assert found.arrived == 4
    assert (found.waiting, found.running) == (2, 0)


@pytest.mark.leaves(waiting=1, pending=1, records=2, consumers=1)
async def test_the_oldest_of_the_waiting_says_how_long_it_waits(queue):
    """Not the oldest of all: a long call that runs is nobody's wait."""
    await queue.put(1)
    await queue.claim("r1")
    before = monotonic()
    await until(lambda: monotonic() > before + 0.05)
    await queue.put(2)
    put_at = monotonic()
    await until(lambda: monotonic() > put_at + 0.05)

    assert 0.04 < (await load(queue)).oldest_wait_s < monotonic() - before


@pytest.mark.leaves(waiting=2, records=2)
async def test_many_deployments_are_looked_at_in_one_round_trip(queue):
    """Two hundred looks must not take two hundred round trips."""
    await queue.put(1, 2)
    pipe = await queue.pipe()

    looks = [calls.load_of(pipe, queue.keys) for _ in range(200)]

    assert {found.waiting for found in await asyncio.gather(*looks)} == {2}


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_glance_sees_a_call(queue):
    """Idle deployments are looked at with one plain command each."""
    pipe = await queue.pipe()
    assert await calls.is_empty(pipe, queue.keys)

    await queue.put(1)

    assert not await calls.is_empty(pipe, queue.keys)
