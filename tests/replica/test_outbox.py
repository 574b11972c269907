"""Replies leave together, but not in one piece of any size: a large one would hold up all others."""

from __future__ import annotations

from qserve.replica.outbox import _cut
from qserve.store.calls import MOST_PER_SCRIPT, Entry, Finished

MIB = 1024 * 1024


def test_large_replies_travel_in_batches_of_four_mebibytes():
    """One script of 250 large replies would block the server, and every caller, for seconds."""
    assert sizes_mib([1] * 10) == [[1] * 4, [1] * 4, [1] * 2]


def test_a_reply_that_is_larger_than_a_batch_travels_alone():
    """It has to go, too, and its neighbours need not wait with it."""
    assert sizes_mib([1, 9, 1]) == [[1], [9], [1]]


def test_small_replies_travel_as_many_as_a_script_may_hold():
    """A script per reply would be the slowest way of all."""
    assert [len(batch) for batch in _cut([reply(1)] * (2 * MOST_PER_SCRIPT + 1))] == [MOST_PER_SCRIPT] * 2 + [1]


def test_nothing_makes_no_batch():
    """An empty script is a command for nothing."""
    assert list(_cut([])) == []


def sizes_mib(given: list[int]) -> list[list[int]]:
    """The sizes of the replies in each batch, in MiB."""
    return [[len(done.reply) // MIB for done in batch] for batch in _cut([reply(size * MIB) for size in given])]


def reply(size_bytes: int) -> Finished:
    """A reply of that size."""
    return Finished(Entry("calls", b"1-0", b"", 1), b"id", "inbox", bytes(size_bytes))
