"""Notes and records: what a caller hears, and what any process can read."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.store import replies
from qserve.wire.messages import Outcome, Reply, seal_reply
from qserve.wire.signing import UNSIGNED, Signer
from tests.store.queue import id_of

UNSIGNED_SIGNER = Signer({}, UNSIGNED)
told = st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.none() | st.binary(max_size=60)), max_size=8)


def note_of(pairs):
    """What finish.lua sends for these (call id, payload) pairs; no payload stands for a reply too large for a note."""
    parts = []
    for call_id, payload in pairs:
        if payload is None:
            parts.append(pack(">I", 0) + call_id)
        else:
            reply = sealed(call_id, payload)
            parts.append(pack(">I", len(reply)) + reply)
    return b"".join(parts)


def sealed(call_id, payload):
    """A reply's envelope."""
    return seal_reply(Reply(call_id, Outcome.DONE, payload), UNSIGNED_SIGNER)


@given(told)
def test_a_note_gives_its_replies_back_in_order(pairs):
    """Replies of one turn travel in one note; each must reach its own caller."""
    expected = [(call_id, None if payload is None else sealed(call_id, payload)) for call_id, payload in pairs]

    assert list(replies.split_note(note_of(pairs))) == expected


@given(told, st.data())
def test_a_cut_note_gives_whole_replies_only_up_to_the_cut(pairs, data):
    """A broken note is a hint that was lost, no more: it must neither raise nor pass half a reply off as one."""
    note = note_of(pairs)
    whole = list(replies.split_note(note))
    cut = list(replies.split_note(note[: data.draw(st.integers(0, len(note)))]))

    assert cut == whole[: len(cut)]


@given(st.binary(max_size=200))
def test_junk_in_an_inbox_is_survived(note):
    """Anybody who reaches Redis can publish to an inbox. What comes out is verified before it is believed."""
    for call_id, reply in replies.split_note(note):
        assert call_id in note
        assert reply is None or reply in note


@pytest.mark.leaves(waiting=1, records=1, replies=1)
async def test_records_are_fetched_in_the_order_asked_for(queue):
    """A client looks all its open calls up at once; each answer belongs to one of them."""
    await queue.put(1, 2)
    await queue.finish((await queue.claim("r1", count=1))[0])
    await queue.leave("r1")

    found = await replies.fetch(queue.link, [queue.keys.record(id_of(n)) for n in (2, 3, 1)])

    assert [record and replies.is_reply(record) for record in found] == [False, None, True]


@pytest.mark.leaves(pending=1, waiting=1, records=2, consumers=1)
async def test_it_is_known_which_replica_runs_a_call(queue):
    """The status of a response tells running from waiting."""
    await queue.put(1, 2)
    await queue.claim("r1", count=1)

    running, waiting = [replies.place(queue.keys, await queue.record(n)) for n in (1, 2)]
    assert await replies.running_on(queue.link, running) == ("r1", 1)
    assert await replies.running_on(queue.link, waiting) is None


async def test_a_reply_that_was_read_is_removed(queue):
    """Its only reader has it: keeping it for an hour would fill the memory at a thousand calls a second."""
    await answered(queue, 1)

    replies.consume(await queue.pipe(), [queue.keys.record(id_of(1))])

    assert await queue.record(1) is None


@pytest.mark.leaves(replies=2)
async def test_a_reply_is_put_back_for_a_reader_that_comes_later_but_never_over_another(queue):
    """The response was read, then passed on: the next process must find it."""
    await answered(queue, 1)
    await answered(queue, 2)
    first = await queue.record(1)
    await queue.forget(1)
    pipe = await queue.pipe()

    replies.restore(pipe, queue.keys.record(id_of(1)), first)
    replies.restore(pipe, queue.keys.record(id_of(2)), b"something else")

    assert await queue.record(1) == first
    assert await queue.answer(2) == "done"


async def answered(queue, number):
    """A call that was put, run and answered."""
    await queue.put(number)
    await queue.finish(*await queue.claim("r1"))
    await queue.leave("r1")
