"""put.lua: each call is in the queue once, however often it is sent."""

from __future__ import annotations

import pytest

from qserve.store import calls
from tests.store.queue import numbers_of


@pytest.mark.leaves(pending=3, records=3, consumers=1)
async def test_calls_are_given_out_in_the_order_they_were_put(queue):
    """First in, first out: nobody is overtaken inside a priority."""
    assert await queue.put(3, 1, 2) == [3, 0]

    assert numbers_of(await queue.claim()) == [3, 1, 2]


@pytest.mark.leaves(waiting=2, records=2)
async def test_a_batch_sent_again_is_the_same_calls(queue):
    """A connection that broke before the answer came makes the client send its batch again; nothing may run twice."""
    await queue.put(1, 2)

    assert (await queue.put(1, 2))[0] == 2
    assert await queue.lengths() == (2, 0)


@pytest.mark.leaves(waiting=3, records=3)
async def test_a_batch_that_overlaps_an_earlier_one_adds_only_what_is_new(queue):
    """Part of a batch may have been stored under a limit; the rest joins it, and keeps its order."""
    await queue.put(1, 2)

    assert (await queue.put(2, 3))[0] == 2
    assert numbers_of(calls.read_entries([[queue.keys.calls.encode(), await everything(queue)]])) == [1, 2, 3]


@pytest.mark.leaves(replies=1)
async def test_a_call_that_was_answered_is_not_put_again(queue):
    """The answer may overtake the confirmation of the put; sending it again must neither run it nor lose its reply."""
    await queue.put(1)
    await queue.finish(*await queue.claim(), value="first")
    await queue.leave("r1")

    assert (await queue.put(1))[0] == 1
    assert await queue.claim("r2") == []
    await queue.leave("r2")
    assert await queue.answer(1) == "first"


@pytest.mark.leaves(waiting=3, records=3)
async def test_a_full_queue_takes_exactly_as_many_as_its_limit(queue):
    """`max_queued_requests` is a promise to the user: one more would be one too many, one fewer refuses good work."""
    assert await queue.put(1, 2, 3, 4, 5, limit=3) == [3, 3]

    assert await queue.record(4) is None
    assert await queue.record(5) is None


@pytest.mark.leaves(pending=2, waiting=3, records=5, consumers=1)
async def test_calls_that_run_do_not_count_as_waiting(queue):
    """The limit bounds the queue, not the work: slots are counted elsewhere."""
    await queue.put(1, 2, 3, limit=3)
    await queue.claim(count=2)

    assert await queue.put(4, 5, 6, limit=3) == [2, 3]


@pytest.mark.leaves(waiting=3, records=3)
async def test_calls_handed_back_count_as_waiting(queue):
    """They wait in another stream; a bound that forgot them would let the queue grow by every dead replica."""
    await queue.put(1, 2)
    await queue.hand_back("r1", *await queue.claim())
    await queue.leave("r1")

    assert await queue.put(3, 4, limit=3) == [1, 3]


@pytest.mark.leaves(waiting=2, records=2)
async def test_a_batch_sent_again_is_not_refused_by_the_queue_that_it_filled(queue):
    """Its calls are in: refusing them now would tell the caller that a call failed which then runs."""
    await queue.put(1, 2, limit=2)

    assert await queue.put(1, 2, limit=2) == [2, 2]


@pytest.mark.parametrize("limit", [-1, 10])
async def test_a_deployment_that_is_gone_takes_nothing(queue, limit):
    """Calls to it would wait for ever; no record is left that a caller could wait for either."""
    assert await calls.retire(queue.link, queue.keys)

    assert await queue.put(1, 2, limit=limit) == [0, -1]


@pytest.mark.leaves(replies=2)
@pytest.mark.parametrize("limit", [-1, 10])
async def test_a_batch_sent_again_to_a_deployment_that_is_gone_by_now_keeps_its_answers(queue, limit):
    """The deployment was deleted after it had answered: the calls were taken, and stay so."""
    await queue.put(1, 2, limit=limit)
    await queue.finish(*await queue.claim())
    await queue.leave("r1")
    assert await calls.retire(queue.link, queue.keys)

    assert await queue.put(1, 2, limit=limit) == [2, 0]
    assert await queue.put(1, 2, 3, limit=limit) == [2, -1]


@pytest.mark.leaves(waiting=1, records=1)
@pytest.mark.parametrize("limit", [-1, 10])
async def test_a_server_without_memory_refuses_new_calls_whole_and_knows_the_old(queue, full, limit):
    """The caller gets an error, so the call must not run; a call that was taken before must not get that error."""
    await queue.put(1, limit=limit)
    with full():
        with pytest.raises(AssertionError, match=r"^OOM"):
            await queue.put(2, 3, limit=limit)
        assert (await queue.put(1, limit=limit))[0] == 1


@pytest.mark.leaves(waiting=calls.MOST_PER_SCRIPT, records=calls.MOST_PER_SCRIPT)
async def test_the_largest_batch_fits_into_one_script(queue):
    """Lua bounds how many values one command can be given; the limit of a batch must stay below it."""
    batch = range(calls.MOST_PER_SCRIPT)
    assert (await queue.put(*batch))[0] == calls.MOST_PER_SCRIPT

    assert (await queue.put(*batch))[0] == calls.MOST_PER_SCRIPT


async def everything(queue):
    """The rows of the queue, given out or not."""
    return await queue.link.call("XRANGE", queue.keys.calls, "-", "+")


# A deployment that is asleep


@pytest.mark.leaves(waiting=2, records=2)
@pytest.mark.parametrize("limit", [-1, 10])
async def test_a_call_to_a_deployment_that_is_asleep_wakes_it(queue, server, limit):
    """Scale to zero is worth having because nobody looks: the call itself brings the queue back, and says so."""
    told = server.pubsub()
    told.subscribe("somewhere")
    assert told.get_message(timeout=1)["type"] == "subscribe"
    assert await calls.fall_asleep(queue.link, queue.keys, "somewhere", "wake app.Echo")

    assert await queue.put(1, 2, limit=limit) == [2, 0 if limit < 0 else 2]

    assert told.get_message(timeout=1)["data"] == b"wake app.Echo"
    assert told.get_message() is None
    assert await queue.lengths() == (2, 0)
    assert not server.exists(queue.keys.asleep)
    told.close()


@pytest.mark.leaves(waiting=3, records=3)
async def test_a_burst_wakes_a_deployment_once(queue, server):
    """Each client's batch is a script of its own; the second finds it awake."""
    told = server.pubsub()
    told.subscribe("somewhere")
    told.get_message(timeout=1)
    await calls.fall_asleep(queue.link, queue.keys, "somewhere", "wake app.Echo")

    await queue.put(1)
    await queue.put(2, 3)

    assert told.get_message(timeout=1)["data"] == b"wake app.Echo"
    assert told.get_message() is None
    told.close()


@pytest.mark.leaves(asleep=1)
async def test_a_server_without_memory_wakes_nobody(queue, full):
    """The call is refused as on any full server; it must not count as a deployment that is gone."""
    await calls.fall_asleep(queue.link, queue.keys, "somewhere", "wake app.Echo")

    with full(), pytest.raises(AssertionError, match=r"^OOM"):
        await queue.put(1)


@pytest.mark.leaves(waiting=2, records=2)
async def test_sleeping_costs_calls_to_those_that_are_awake_no_command(queue, server):
    """The hot path: a put is the script, an XADD for each call and one MSETNX, as it was before there was sleep."""
    await queue.put(1)
    server.config_resetstat()
    await queue.put(2)

    counted = {name: stat["calls"] for name, stat in server.info("commandstats").items()}
    counted.pop("cmdstat_config|resetstat", None)
    assert counted == {"cmdstat_evalsha": 1, "cmdstat_xadd": 1, "cmdstat_msetnx": 1}
