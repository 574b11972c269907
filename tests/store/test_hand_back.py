"""hand_back.lua: a call that its replica cannot finish goes to the front as a new entry, which fences the old owner."""

from __future__ import annotations

import pytest

from qserve.store import calls, replies
from qserve.store.calls import MOST_PER_SWEEP
from qserve.wire.keys import GROUP
from tests.store.queue import id_of, numbers_of


@pytest.mark.leaves(pending=1, records=1, consumers=1)
@pytest.mark.parametrize(("charge", "attempt"), [(True, 2), (False, 1)])
async def test_a_call_goes_to_the_front_and_its_attempt_counts_when_its_replica_died(queue, charge, attempt):
    """A call that kills replicas must end some day; one that a drain interrupts has done nothing wrong."""
    await queue.put(1)

    assert await queue.hand_back("r1", *await queue.claim("r1"), charge=charge) == 1
    await queue.leave("r1")

    (again,) = await queue.claim("r2")
    assert (again.stream, again.attempt, again.envelope) == (queue.keys.front, attempt, queue.sealed(1)[1])


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_attempts_add_up(queue):
    """A call handed back from the front is in its third attempt, not again in its second."""
    await queue.put(1)
    for replica in ("r1", "r2"):
        await queue.hand_back(replica, *await queue.claim(replica))
        await queue.leave(replica)

    assert [entry.attempt for entry in await queue.claim("r3")] == [3]


@pytest.mark.leaves(pending=4, records=4, consumers=1)
async def test_calls_handed_back_come_first_and_keep_their_order(queue):
    """They have waited once already, and first in, first out holds among them."""
    await queue.put(1, 2, 3)
    await queue.hand_back("r1", *await queue.claim("r1"))
    await queue.leave("r1")
    await queue.put(4)

    assert numbers_of(await queue.claim("r2")) == [1, 2, 3, 4]


@pytest.mark.leaves(waiting=1, records=1)
async def test_the_record_points_to_the_new_entry(queue):
    """Whoever asks where the call stands must find it, or a call that runs would show as lost."""
    await queue.put(1)
    await queue.hand_back("r1", *await queue.claim("r1"))
    await queue.leave("r1")

    at = replies.place(queue.keys, await queue.record(1))
    assert at.stream == queue.keys.front
    assert await queue.link.call("XRANGE", at.stream, at.entry_id, at.entry_id)


@pytest.mark.leaves(replies=1)
async def test_watchers_stay_with_the_call(queue, ear):
    """Who waits for the result must hear it from the second replica as from the first."""
    await queue.put(1)
    await replies.watch(queue.link, queue.keys, id_of(1), queue.inbox)
    await queue.hand_back("r1", *await queue.claim("r1"))
    (again,) = await queue.claim("r2")

    await queue.store([calls.Finished(again, id_of(1), "", queue.reply(id_of(1), "done"))])

    assert len(await ear.heard()) == 1
    await queue.leave("r1", "r2")


@pytest.mark.leaves(replies=1)
async def test_only_the_new_owner_answers(queue, ear):
    """The old owner was paused, not dead, and finishes before the new one: its reply must not count."""
    await queue.put(1)
    old = await queue.claim("r1")
    await queue.hand_back("r1", *old)
    new = await queue.claim("r2")

    assert await queue.finish(*old, value="late") == 1
    assert await queue.finish(*new, value="second attempt") == 0

    assert await queue.answer(1) == "second attempt"
    assert len(await ear.heard()) == 1
    await queue.leave("r1", "r2")


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_a_call_that_another_replica_holds_is_left_alone(queue):
    """A worker that acts on an old view must not take a call away from the replica that runs it now."""
    await queue.put(1)
    held = await queue.claim("r1")

    assert await queue.hand_back("r2", *held) == 0

    assert await calls.all_pending(await queue.pipe(), queue.keys.calls, "r1") == held


@pytest.mark.leaves(waiting=1, records=1)
async def test_handing_back_twice_moves_a_call_once(queue):
    """The worker and the controller may both find the replica dead; the call must not run twice for it."""
    await queue.put(1)
    held = await queue.claim("r1")

    assert await queue.hand_back("r1", *held) == 1
    assert await queue.hand_back("r1", *held) == 0

    assert await queue.lengths() == (1, 0)
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_a_call_that_was_answered_meanwhile_is_left_alone(queue):
    """Its replica finished between the look and the act: handing it back would run it again and drop the reply."""
    await queue.put(1)
    held = await queue.claim("r1")
    await queue.finish(*held)

    assert await queue.hand_back("r1", *held) == 0

    assert await queue.answer(1) == "done"
    await queue.leave("r1")


@pytest.mark.leaves(waiting=1, records=1)
async def test_without_a_group_nothing_is_held(queue, server):
    """After a FLUSH or an XGROUP DESTROY all entries wait again: moving them would make copies."""
    await queue.put(1)
    held = await queue.claim("r1")
    server.xgroup_destroy(queue.keys.calls, GROUP)

    assert await queue.hand_back("r1", *held) == 0
    await queue.open()
    await queue.leave("r1")


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_record_that_was_lost_is_made_again(queue):
    """The call still runs: whoever asks for it must not be told that it is lost."""
    await queue.put(1)
    held = await queue.claim("r1")
    await queue.forget(1)

    assert await queue.hand_back("r1", *held) == 1
    await queue.leave("r1")


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_copied_entry_is_dropped(queue, server):
    """A replayed entry must not take the place of the call it was copied from, nor live on as a call of its own."""
    await queue.put(1)
    server.xadd(queue.keys.calls, {"c": queue.sealed(1)[1]})
    original, copy = await queue.claim("r1")

    assert await queue.hand_back("r1", copy) == 0

    assert await queue.lengths() == (1, 1)
    assert await queue.hand_back("r1", original) == 1
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_a_copied_entry_does_not_undo_a_reply(queue, server):
    """The call was answered; its record holds the reply until somebody has read it."""
    await queue.put(1)
    server.xadd(queue.keys.calls, {"c": queue.sealed(1)[1]})
    original, copy = await queue.claim("r1")
    await queue.finish(original)

    assert await queue.hand_back("r1", copy) == 0

    assert await queue.answer(1) == "done"
    await queue.leave("r1")


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_server_without_memory_hands_back(queue, full):
    """What is added is deleted in the same step; refusing it would strand the calls of a dead replica."""
    await queue.put(1)
    held = await queue.claim("r1")
    with full():
        assert await queue.hand_back("r1", *held) == 1
    await queue.leave("r1")


@pytest.mark.leaves(waiting=2, records=2)
async def test_a_record_of_another_type_does_not_multiply_the_call(queue, server):
    """A script that fails after it added and before it deleted adds one more copy with each attempt."""
    await queue.put(1, 2)
    held = await queue.claim("r1")
    server.delete(queue.keys.record(id_of(1)))
    server.lpush(queue.keys.record(id_of(1)), "junk")

    assert await queue.hand_back("r1", *held) == 2

    assert await queue.lengths() == (2, 0)
    await queue.leave("r1")


@pytest.mark.leaves(waiting=MOST_PER_SWEEP, records=MOST_PER_SWEEP)
async def test_a_whole_sweep_fits_into_one_script(queue):
    """A dead replica's calls go back in pages; a page must not be more than a script can do."""
    await queue.put(*range(MOST_PER_SWEEP))

    assert await queue.hand_back("r1", *await queue.claim("r1", count=MOST_PER_SWEEP)) == MOST_PER_SWEEP
    await queue.leave("r1")
