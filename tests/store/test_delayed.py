"""delay.lua, release.lua, call_off.lua: a delayed call enters the queue once, at its time."""

from __future__ import annotations

import asyncio
import time

import pytest

from qserve.errors import CallRejected, DeploymentUnavailableError
from qserve.store import calls, delayed, replies
from qserve.store.calls import MOST_PER_SCRIPT
from qserve.store.connection import endpoint_of
from qserve.store.delayed import Due
from qserve.store.link import Link
from tests.store.later import call_off, delay, fall_asleep, look, release
from tests.store.queue import Ear, id_of, numbers_of

# Keeping


@pytest.mark.leaves(delayed=2)
async def test_a_delayed_call_is_kept_apart_until_it_is_due(queue):
    """No replica may see it before its time, and it takes no place in the queue."""
    before_ms = time.time() * 1000
    assert await delay(queue, 1, 2) == [2, 0]

    assert await queue.lengths() == (0, 0)
    seen = await look(queue)
    assert seen.due == ()
    assert before_ms + 3_599_000 < seen.next_ms < before_ms + 3_605_000


@pytest.mark.leaves(delayed=1)
async def test_a_delayed_call_sent_again_keeps_its_time(queue, server):
    """A connection that broke before the answer makes the client send again: that must not double it or put it off."""
    await delay(queue, 1)
    first = server.zscore(queue.keys.delayed, id_of(1))

    assert await delay(queue, 1, due=Due(7_200_000, after=True)) == [1, 0]
    assert server.zscore(queue.keys.delayed, id_of(1)) == first


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_call_that_has_been_released_is_not_delayed_again(queue):
    """The confirmation may be lost for as long as the delay lasts."""
    await delay(queue, 1)
    await release(queue, 1)

    assert await delay(queue, 1) == [1, 0]
    assert await queue.lengths() == (1, 0)


@pytest.mark.leaves(delayed=1)
async def test_a_time_of_the_epoch_is_kept_as_it_is(queue, server):
    """`at` names a moment, whatever the clocks of its caller and of the server think of each other."""
    await delay(queue, 1, due=Due(4_000_000_000_123, after=False))

    assert server.zscore(queue.keys.delayed, id_of(1)) == 4_000_000_000_123


async def test_a_deployment_that_is_gone_takes_no_delayed_call(queue):
    """Its caller would wait until the time has come only to hear that there is nobody."""
    await calls.retire(queue.link, queue.keys)

    assert await delay(queue, 1) == [0, -1]


@pytest.mark.leaves(delayed=1, asleep=1)
async def test_a_deployment_that_is_asleep_takes_delayed_calls_and_sleeps_on(queue, server):
    """Nobody needs a replica for a call that is due in an hour."""
    await fall_asleep(queue)

    assert await delay(queue, 1) == [1, 0]
    assert server.exists(queue.keys.asleep)


@pytest.mark.leaves(delayed=1)
async def test_a_server_without_memory_refuses_new_delayed_calls_whole(queue, full):
    """The caller gets an error, so the call must not run; one that was taken before must not get that error."""
    await delay(queue, 1)
    with full():
        with pytest.raises(Exception, match="OOM"):
            await delay(queue, 2, 3)
        assert await delay(queue, 1) == [1, 0]


@pytest.mark.leaves(delayed=MOST_PER_SCRIPT)
async def test_the_largest_batch_fits_into_one_script(queue):
    """A client cuts its batches by number, whether they are delayed or not."""
    assert await delay(queue, *range(MOST_PER_SCRIPT)) == [MOST_PER_SCRIPT, 0]


@pytest.mark.leaves(delayed=3)
async def test_only_a_call_that_is_due_sooner_than_all_others_is_told(queue, settings, state):
    """Whoever sleeps until the next one is due need not be woken by those behind it."""
    heard: list[bytes] = []
    ear = Ear(endpoint_of(settings), state.keys.events, heard.append)
    await ear.open()

    for number, ms in ((1, 5_000_000_000_000), (2, 5_000_000_000_001), (3, 4_999_999_999_999)):
        await delay(queue, number, due=Due(ms, after=False))

    await ear.heard()
    await ear.close()
    assert heard == [b"delayed app.Echo 5000000000000", b"delayed app.Echo 4999999999999"]


# Releasing


@pytest.mark.leaves(pending=3, records=3, consumers=1)
async def test_due_calls_enter_the_queue_in_the_order_of_their_times(queue):
    """Who asked for an earlier moment is served first, whenever they asked."""
    for number, ms in ((1, 3000), (2, 1000), (3, 2000)):
        await delay(queue, number, due=Due(ms, after=False))

    assert await delayed.release(queue.link, queue.keys, (await look(queue)).due) == 3
    assert numbers_of(await queue.claim()) == [2, 3, 1]


@pytest.mark.leaves(waiting=50, records=50)
async def test_a_call_is_released_once_however_many_release_it(queue, settings):
    """Several autoscalers and schedulers wake at the same millisecond."""
    await delay(queue, *range(50), due=Due(1, after=False))
    due = (await look(queue)).due
    links = [Link(endpoint_of(settings), "other") for _ in range(4)]

    moved = await asyncio.gather(*(delayed.release(link, queue.keys, due) for link in links))

    await asyncio.gather(*(link.close() for link in links))
    assert sum(moved) == 50


@pytest.mark.leaves(replies=1)
async def test_who_watches_a_delayed_call_hears_its_reply(queue, ear, settings):
    """`serve.get_response(id)` in another process, an hour before the call runs."""
    await delay(queue, 1)
    other = Ear(endpoint_of(settings), f"{queue.inbox}-other")
    await other.open()
    record = await replies.watch(queue.link, queue.keys, id_of(1), f"{queue.inbox}-other")
    assert record is not None
    assert replies.is_scheduled(record)

    await release(queue, 1)
    await queue.finish(*await queue.claim(), value="at last")
    await queue.leave("r1")

    assert await queue.answer(1) == "at last"
    assert [len(await heard.heard()) for heard in (ear, other)] == [1, 1]
    await other.close()


@pytest.mark.leaves(waiting=1, records=1)
async def test_an_asleep_deployment_wakes_when_a_call_is_due(queue, server, settings, state):
    """Nobody else would start a replica for it."""
    await delay(queue, 1)
    await fall_asleep(queue)
    heard: list[bytes] = []
    ear = Ear(endpoint_of(settings), state.keys.events, heard.append)
    await ear.open()

    assert await release(queue, 1) == 1

    await ear.heard()
    await ear.close()
    assert heard == [b"wake app.Echo"]
    assert (await queue.put(1))[0] == 1


@pytest.mark.leaves(delayed=1)
async def test_a_queue_that_is_gone_is_not_made_again_by_a_release(queue, server):
    """A deleted deployment must stay deleted: nobody would ever serve, or remove, that queue."""
    await delay(queue, 1)
    server.delete(queue.keys.calls, queue.keys.front)

    assert await release(queue, 1) == -1
    assert not server.exists(queue.keys.calls)


@pytest.mark.leaves(waiting=1, records=1)
async def test_calls_are_released_on_a_full_server(queue, full):
    """A full server drains by running calls: what it holds already must get into the queue."""
    await delay(queue, 1)
    with full():
        assert await release(queue, 1) == 1


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_delayed_call_whose_record_was_evicted_runs_all_the_same(queue, server):
    """It was confirmed; its record is made again."""
    await delay(queue, 1)
    server.delete(queue.keys.record(id_of(1)))

    assert await release(queue, 1) == 1


async def test_what_somebody_else_put_among_the_delayed_calls_goes(queue, server):
    """A stray member without an envelope must not stop those behind it for ever."""
    server.zadd(queue.keys.delayed, {b"junk": 1})

    assert await delayed.release(queue.link, queue.keys, (await look(queue)).due) == 0
    assert (await look(queue)).due == ()


# Calling off


@pytest.mark.leaves(replies=2)
async def test_the_delayed_calls_of_a_deleted_deployment_are_answered(queue, ear):
    """A caller must hear now that the call will not run, not in an hour; and no key stays behind."""
    await delay(queue, 1, 2)

    assert await call_off(queue) == 2

    assert len(await ear.heard()) == 2
    with pytest.raises(DeploymentUnavailableError, match="before the call was due"):
        await queue.answer(1)
    assert await calls.retire(queue.link, queue.keys)


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_call_that_is_in_the_queue_is_not_called_off(queue):
    """It became due in the same moment: whoever takes it from the delayed ones decides, and only one does."""
    await delay(queue, 1)
    await release(queue, 1)

    assert await call_off(queue) == 0


@pytest.mark.leaves(replies=2)
async def test_a_delayed_call_that_cannot_be_trusted_is_refused_and_the_others_answered(queue, server):
    """Somebody without the secret writes to Redis: nothing of it is opened."""
    await delay(queue, 1, 2)
    forged = bytearray(queue.sealed(1)[1])
    forged[-1] ^= 1
    server.hset(queue.keys.envelopes, id_of(1), bytes(forged))

    assert await call_off(queue) == 2

    with pytest.raises(CallRejected):
        await queue.answer(1)
    with pytest.raises(DeploymentUnavailableError):
        await queue.answer(2)


@pytest.mark.leaves(delayed=1)
async def test_a_deployment_is_not_gone_while_calls_to_it_are_delayed(queue, server):
    """Its queue is removed last: a call that was confirmed a moment ago must still be answered."""
    await delay(queue, 1)

    assert not await calls.retire(queue.link, queue.keys)
    assert server.exists(queue.keys.calls)
