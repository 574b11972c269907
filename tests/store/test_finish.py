"""finish.lua: reply, acknowledgement, removal and notes in one step; who deletes the entry answers the call."""

from __future__ import annotations

import pytest

from qserve.config import RESULT_TTL_S
from qserve.store import calls, replies
from qserve.store.calls import INLINE_REPLY_BYTES, Finished
from qserve.wire.keys import GROUP
from qserve.wire.messages import Reply, seal_reply
from qserve.wire.signing import Direction
from tests.store.queue import id_of


@pytest.mark.leaves(replies=2)
async def test_a_reply_frees_the_queue_and_tells_the_caller(queue, ear):
    """Reply, acknowledgement and removal are one step: half of it would run a call again, or fill the memory."""
    await queue.put(1, 2)
    done = [queue.finished(entry) for entry in await queue.claim()]

    assert await queue.store(done) == 0

    assert await queue.lengths() == (0, 0)
    assert await queue.answer(1) == "done"
    assert await ear.heard() == [(id_of(1), done[0].reply), (id_of(2), done[1].reply)]
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_a_reply_that_nobody_fetches_goes_by_itself(queue, server):
    """Callers die. What they left must not fill the memory for ever."""
    await queue.put(1)
    await queue.finish(*await queue.claim())
    await queue.leave("r1")

    left_ms = server.pttl(queue.keys.record(id_of(1)))
    assert 0.9 * RESULT_TTL_S < left_ms / 1000 <= RESULT_TTL_S


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_replica_whose_call_was_handed_back_is_fenced(queue, ear):
    """It was paused, another one has the call: the caller must hear one answer, from the one that holds it."""
    await queue.put(1)
    held = await queue.claim()
    await queue.hand_back("r1", *held)

    assert await queue.finish(*held) == 1

    assert not replies.is_reply(await queue.record(1))
    assert await ear.heard() == []
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_a_call_that_another_process_answered_is_fenced(queue, ear):
    """Its worker gave the call up and said so; the caller must not hear a second, different answer."""
    await queue.put(1)
    held = await queue.claim()
    assert await calls.finish_one(queue.link, queue.keys, queue.finished(held[0], "given up"))

    assert not await calls.finish_one(queue.link, queue.keys, queue.finished(held[0], "done after all"))

    assert await queue.answer(1) == "given up"
    assert len(await ear.heard()) == 1
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_an_entry_deleted_by_hand_is_still_answered_by_its_owner(queue, ear, server):
    """An operator's XDEL leaves the call with its replica and nobody else: dropping the reply would be silence."""
    await queue.put(1)
    held = await queue.claim()
    server.xdel(queue.keys.calls, held[0].entry_id)

    assert await queue.finish(*held) == 0

    assert len(await ear.heard()) == 1
    await queue.leave("r1")


@pytest.mark.leaves(replies=2, waiting=1, records=1)
async def test_one_fenced_call_does_not_hold_up_its_batch(queue, ear):
    """Replies of one turn travel together; each is judged by itself."""
    await queue.put(1, 2, 3)
    held = await queue.claim()
    await queue.hand_back("r1", held[1])

    assert await queue.finish(*held) == 1

    assert [call_id for call_id, _ in await ear.heard()] == [id_of(1), id_of(3)]
    assert await queue.lengths() == (1, 0)
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_a_reply_sent_again_answers_once(queue, ear):
    """The connection broke before the confirmation came: the replica offers its reply again."""
    await queue.put(1)
    batch = [queue.finished(entry) for entry in await queue.claim()]
    await queue.store(batch)

    assert await queue.store(batch) == 1

    assert len(await ear.heard()) == 1
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_everybody_who_watches_hears_the_reply(queue, ear):
    """A replica waits for another call's result as its argument; it must not find out by polling."""
    await queue.put(1)
    held = await queue.claim()
    for watcher in ("elsewhere", queue.inbox):
        await replies.watch(queue.link, queue.keys, id_of(1), watcher)

    await queue.store([Finished(held[0], id_of(1), "", queue.reply(id_of(1), "done"))])

    assert [call_id for call_id, _ in await ear.heard()] == [id_of(1)]
    assert await queue.answer(1) == "done"
    await queue.leave("r1")


@pytest.mark.leaves(replies=2)
async def test_an_inbox_hears_its_own_replies_only(queue, ear):
    """Replies to several callers leave in one script; each caller gets what is its own."""
    await queue.put(1, 2)
    first, second = await queue.claim()
    theirs = Finished(second, id_of(2), "somebody-else", queue.reply(id_of(2), "theirs"))

    await queue.store([queue.finished(first), theirs])

    assert [call_id for call_id, _ in await ear.heard()] == [id_of(1)]
    await queue.leave("r1")


@pytest.mark.leaves(replies=2)
async def test_a_large_reply_is_told_by_its_id(queue, ear):
    """The server closes subscribers that fall behind by megabytes: large replies are fetched instead."""
    await queue.put(1, 2)
    inline, large = await queue.claim()
    fits = sized_reply(queue, id_of(1), INLINE_REPLY_BYTES)
    too_large = sized_reply(queue, id_of(2), INLINE_REPLY_BYTES + 1)

    await queue.store(
        [Finished(inline, id_of(1), queue.inbox, fits), Finished(large, id_of(2), queue.inbox, too_large)]
    )

    assert await ear.heard() == [(id_of(1), fits), (id_of(2), None)]
    assert await queue.record(2) == too_large
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_a_reply_counts_though_the_group_was_destroyed(queue, ear, server):
    """Without a group nothing can be acknowledged; the entry is still there, so nobody else has answered."""
    await queue.put(1)
    held = await queue.claim()
    server.xgroup_destroy(queue.keys.calls, GROUP)

    assert await queue.finish(*held) == 0

    assert len(await ear.heard()) == 1
    await queue.open()
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_a_call_given_out_twice_by_a_new_group_is_answered_once(queue, ear, server):
    """A group made again gives everything out again. Whoever is first answers; the other one is fenced."""
    await queue.put(1)
    first = await queue.claim("r1")
    server.xgroup_destroy(queue.keys.calls, GROUP)
    assert await queue.claim("r2") == []  # makes the group again
    second = await queue.claim("r2")

    assert await queue.finish(*first, value="first") == 0
    assert await queue.finish(*second, value="second") == 1

    assert await queue.answer(1) == "first"
    assert len(await ear.heard()) == 1
    assert await queue.lengths() == (0, 0)
    await queue.leave("r1", "r2")


@pytest.mark.leaves(replies=1)
async def test_a_reply_whose_record_was_lost_still_reaches_the_caller(queue, ear):
    """The caller waits for it; that nobody can look the call up is no reason to drop its answer."""
    await queue.put(1)
    held = await queue.claim()
    await queue.forget(1)

    assert await queue.finish(*held) == 0

    assert len(await ear.heard()) == 1
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_copied_entry_answers_nothing(queue, ear, server, order):
    """Whoever can write to Redis can replay a signed call; the caller must hear of the call that it made, once."""
    await queue.put(1)
    server.xadd(queue.keys.calls, {"c": queue.sealed(1)[1]})
    held = await queue.claim()
    original, copy = held

    for index in order:
        fenced = await queue.finish(held[index], value="the call" if held[index] is original else "the copy")
        assert fenced == (held[index] is copy)

    assert await queue.answer(1) == "the call"
    assert len(await ear.heard()) == 1
    assert await queue.lengths() == (0, 0)
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_a_copied_entry_leaves_the_watchers_of_the_call(queue, ear, server):
    """A refused copy puts the record back as it was."""
    await queue.put(1)
    server.xadd(queue.keys.calls, {"c": queue.sealed(1)[1]})
    await replies.watch(queue.link, queue.keys, id_of(1), queue.inbox)
    before = await queue.record(1)
    original, copy = await queue.claim()

    await queue.finish(copy)

    assert await queue.record(1) == before
    assert server.pttl(queue.keys.record(id_of(1))) == -1
    await queue.finish(original)
    await queue.leave("r1")


@pytest.mark.leaves(replies=3)
async def test_a_record_of_another_type_does_not_cost_other_calls_their_replies(queue, ear, server):
    """A script is not rolled back when it fails in the middle: the replies behind the bad one would be lost."""
    await queue.put(1, 2, 3)
    held = await queue.claim()
    server.delete(queue.keys.record(id_of(2)))
    server.lpush(queue.keys.record(id_of(2)), "junk")

    assert await queue.finish(*held) == 0

    assert len(await ear.heard()) == 3
    assert [await queue.answer(n) for n in (1, 2, 3)] == ["done"] * 3
    await queue.leave("r1")


@pytest.mark.leaves(replies=1)
async def test_a_server_without_memory_takes_replies(queue, ear, full):
    """Finishing is what frees memory: refusing it would keep the server full for ever."""
    await queue.put(1)
    held = await queue.claim()
    with full():
        assert await queue.finish(*held) == 0

    assert len(await ear.heard()) == 1
    await queue.leave("r1")


@pytest.mark.leaves(replies=calls.MOST_PER_SCRIPT)
async def test_the_largest_batch_fits_into_one_script(queue, ear):
    """Lua bounds how many values one command can be given; the limit of a batch must stay below it."""
    await queue.put(*range(calls.MOST_PER_SCRIPT))

    assert await queue.finish(*await queue.claim(count=calls.MOST_PER_SCRIPT)) == 0

    assert len(await ear.heard()) == calls.MOST_PER_SCRIPT
    await queue.leave("r1")


def sized_reply(queue, call_id, size_bytes):
    """A signed reply of exactly this size."""
    signer = queue.ring.signer(Direction.REPLY, queue.keys.scope)
    around = len(seal_reply(Reply(call_id, 0, b""), signer))
    return seal_reply(Reply(call_id, 0, b"x" * (size_bytes - around)), signer)
