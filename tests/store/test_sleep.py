"""sleep.lua and open.lua: a deployment without replicas has no queue, and is not gone."""

from __future__ import annotations

import pytest

from qserve.store import calls, replies
from qserve.store.replies import Place


async def sleep(queue) -> bool:
    """Put the deployment to sleep, as the scaler does."""
    return await calls.fall_asleep(queue.link, queue.keys, "somewhere", "wake app.Echo")


@pytest.mark.leaves(asleep=1)
async def test_an_empty_queue_goes_and_leaves_a_note(queue, server):
    """Nothing of a deployment at zero costs anything, but the next call must be able to tell it from a deleted one."""
    assert await sleep(queue)

    assert not server.exists(queue.keys.calls, queue.keys.front)
    assert server.get(queue.keys.asleep) == b"somewhere wake app.Echo"


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_deployment_with_a_waiting_call_stays_awake(queue, server):
    """The call came between the look and the sleep: it must not vanish."""
    await queue.put(1)

    assert not await sleep(queue)
    assert not server.exists(queue.keys.asleep)


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_a_deployment_with_a_running_call_stays_awake(queue):
    """Its replica's last answer needs the entry."""
    await queue.put(1)
    await queue.claim("r1")

    assert not await sleep(queue)


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_deployment_with_a_call_handed_back_stays_awake(queue):
    """The second stream counts too."""
    await queue.put(1)
    await queue.hand_back("r1", *await queue.claim("r1"))
    await queue.leave("r1")

    assert not await sleep(queue)


@pytest.mark.leaves(asleep=1)
async def test_sleeping_twice_is_sleeping(queue):
    """A controller that lost the answer asks again."""
    assert await sleep(queue)
    assert await sleep(queue)
    assert await calls.is_asleep(await queue.pipe(), queue.keys)


async def test_a_deployment_that_is_gone_does_not_fall_asleep(queue, server):
    """A leader that was paused while its application was deleted: calls must go on being refused, not wait for ever."""
    await calls.retire(queue.link, queue.keys)

    assert not await sleep(queue)
    assert await queue.put(1) == [0, -1]


async def test_deleting_a_deployment_that_is_asleep_leaves_nothing(queue):
    """Else the first call to a deleted deployment would wake it."""
    await sleep(queue)

    assert await calls.retire(queue.link, queue.keys)
    assert await queue.put(1) == [0, -1]


async def test_opening_the_queue_wakes_without_a_call(queue, server):
    """A deploy, or a replica that starts: from here on the queue is there, and the note would be wrong."""
    await sleep(queue)

    await queue.open()

    assert not await calls.is_asleep(await queue.pipe(), queue.keys)
    assert server.exists(queue.keys.calls, queue.keys.front) == 2


@pytest.mark.leaves(waiting=1, records=1)
async def test_opening_an_open_queue_changes_nothing(queue):
    """Every replica opens it, and every deploy."""
    await queue.put(1)

    await queue.open()

    assert await queue.lengths() == (1, 0)


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_a_replica_that_is_still_there_makes_the_queue_again(queue):
    """Its worker was cut off, and the leader believed it gone: what it claims from is missing, and comes back."""
    await sleep(queue)

    assert await queue.claim("r1") == []
    await queue.put(1)

    assert len(await queue.claim("r1")) == 1


@pytest.mark.leaves(asleep=1)
async def test_nobody_else_minds_that_the_queue_is_missing(queue):
    """Sweeps, statuses and late answers meet it at any time."""
    await sleep(queue)
    pipe = await queue.pipe()

    assert await calls.depth(queue.link, queue.keys) == calls.Depth(0, 0)
    assert await calls.holders(queue.link, queue.keys) == {}
    assert await calls.pending(pipe, queue.keys.calls, "r1") == []
    assert await calls.reap(queue.link, queue.keys, "r1")
    assert await queue.reclaimer().abandoned() == 0
    assert await queue.reclaimer().all_of("r1", "a test") == 0
    assert await replies.running_on(queue.link, Place(queue.keys.calls, "1-1")) is None
    assert await calls.is_empty(pipe, queue.keys)


@pytest.mark.leaves(asleep=1, replies=1)
async def test_a_late_answer_to_a_call_of_a_queue_that_is_gone_is_fenced(queue):
    """It was answered, and the deployment fell asleep; what a replica that was cut off sends then finds nothing."""
    await queue.put(1)
    entries = await queue.claim("r1")
    await queue.finish(*entries, value="first")
    await queue.leave("r1")
    await sleep(queue)

    assert await queue.finish(*entries, value="second") == 1
    assert await queue.answer(1) == "first"


@pytest.mark.leaves(asleep=1, replies=1)
async def test_a_batch_sent_again_to_a_deployment_that_is_asleep_adds_nothing(queue):
    """The client lost the confirmation; meanwhile the call was answered. It is awake for a moment, and empty."""
    await queue.put(1)
    await queue.finish(*await queue.claim("r1"))
    await queue.leave("r1")
    await sleep(queue)

    assert (await queue.put(1))[0] == 1
    assert await queue.lengths() == (0, 0)
    assert await sleep(queue)
