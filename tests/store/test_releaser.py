"""Who releases delayed calls: at their time, after any loss, and at no cost while there are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from qserve.errors import DeploymentUnavailableError, TransportError
from qserve.store import calls, delayed, replies
from qserve.store.calls import Entry
from qserve.store.connection import endpoint_of
from qserve.store.delayed import Due, Releaser
from qserve.store.link import Link
from qserve.store.state import ClusterState
from tests.store.later import APP, SOON, delay
from tests.store.queue import numbers_of
from tests.store.until import until


@pytest.fixture
async def releaser(queue, state, ring, settings) -> AsyncIterator[Releaser]:
    """A releaser at work, on a connection of its own, which hears the events."""
    link = Link(endpoint_of(settings), "test-releaser")
    running = Releaser(ClusterState(link, settings.namespace, ring), ring)

    async def subscribe(pipe) -> None:
        await replies.subscribe(pipe, state.keys.events)
        running.look_again()

    events = Link(endpoint_of(settings), "test-events", on_up=subscribe, on_message=running.hear)
    await events.ready()
    task = asyncio.create_task(running.run())
    yield running
    task.cancel()
    await asyncio.wait([task])
    await events.close()
    await link.close()


async def queued(queue, count: int) -> None:
    """Wait until so many calls are in the queue."""
    async with asyncio.timeout(10):
        while (await calls.depth(queue.link, queue.keys)).waiting < count:  # noqa: ASYNC110 (Redis has no event for it)
            await asyncio.sleep(0.01)


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_a_call_is_released_at_its_time(queue, releaser):
    """Not before, and not much later: the releaser is told of it and sleeps until then."""
    asked_at = time.monotonic()
    await delay(queue, 1, due=Due(300, after=True))
    entries = await calls.claim(await queue.pipe(), queue.keys, "r1", 1, 5000)

    assert numbers_of(entries) == [1]
    assert 0.29 < time.monotonic() - asked_at < 1.0


@pytest.mark.leaves(pending=2, records=2, delayed=1, consumers=1)
async def test_a_call_that_is_due_sooner_wakes_the_releaser(queue, releaser):
    """It sleeps until the one in an hour; the one in a moment must not wait for it."""
    await delay(queue, 1)
    await delay(queue, 2, due=SOON)
    await delay(queue, 3, due=SOON)
    took: list[Entry] = []
    while len(took) < 2:
        took += await calls.claim(await queue.pipe(), queue.keys, "r1", 2, 5000)

    assert numbers_of(took) == [2, 3]


@pytest.mark.leaves(waiting=3 * delayed.MOST_AT_ONCE, records=3 * delayed.MOST_AT_ONCE)
async def test_more_calls_than_one_script_moves_are_all_released(queue, releaser):
    """A thousand reminders at nine o'clock."""
    for start in range(3):
        first = start * delayed.MOST_AT_ONCE
        await delay(queue, *range(first, first + delayed.MOST_AT_ONCE), due=Due(1, after=False))
    await queued(queue, 3 * delayed.MOST_AT_ONCE)


@pytest.mark.leaves(waiting=1, records=1)
async def test_what_became_due_while_nobody_ran_is_released_when_somebody_does(queue, state, ring):
    """All of the control plane was down over the weekend, and no event is told twice."""
    await state.deploy(APP, {})
    await delay(queue, 1, due=Due(1, after=False))

    task = asyncio.create_task(Releaser(state, ring).run())
    await queued(queue, 1)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.leaves(waiting=2, records=2)
async def test_a_releaser_goes_on_after_its_connections_were_lost(queue, releaser, server, settings, state):
    """Redis restarts: events of that time are missed, so it asks for everything again."""
    await state.deploy(APP, {})
    await delay(queue, 1, due=SOON)
    for client in server.client_list():
        if client["name"].startswith("test"):
            server.client_kill_filter(_id=client["id"])
    with suppress(TransportError):  # it travels while the connection breaks; the same call again is the same call
        await delay(queue, 2, due=SOON)
    await queue.link.ready()
    await delay(queue, 2, due=SOON)

    await queued(queue, 2)


@pytest.mark.leaves(replies=1)
async def test_a_call_whose_deployment_is_gone_is_answered_when_it_is_due(queue, releaser, server, ear):
    """Its keys were lost, or removed by hand: its caller still gets an answer."""
    await delay(queue, 1, due=Due(100, after=True))
    server.delete(queue.keys.calls, queue.keys.front)
    heard: list[object] = []
    async with asyncio.timeout(5):
        while not heard:
            heard += await ear.heard()
            await asyncio.sleep(0.01)

    with pytest.raises(DeploymentUnavailableError):
        await queue.answer(1)


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_key_of_the_wrong_type_holds_up_only_its_own_deployment(queue, releaser, server, settings):
    """Somebody's mistake in one application is not an outage of all."""
    broken = f"{queue.keys.delayed}".replace(":Echo}", ":Other}")
    server.set(broken, b"no sorted set")
    try:
        server.publish(f"qserve:1:{{{settings.namespace}}}:events", b"delayed app.Other 1")
        await delay(queue, 1, due=SOON)
        await queued(queue, 1)
    finally:
        server.delete(broken)


async def test_a_releaser_sends_nothing_while_no_call_is_delayed(queue, releaser, server, state):
    """An idle cluster costs nothing."""
    await state.deploy(APP, {})
    await until(lambda: not releaser._looks_everywhere)
    marks = [mark async for mark in quiet(queue, server)]

    assert marks[0] == marks[1]


async def quiet(queue, server):
    """How many ZRANGE the server has seen, before and after a while."""
    for _ in range(2):
        stats = server.info("commandstats").get("cmdstat_zrange", {"calls": 0})
        yield stats["calls"]
        await asyncio.sleep(0.3)
