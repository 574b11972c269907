"""pending.lua: what a replica holds, read in pages that neither time nor size can blow up."""

from __future__ import annotations

import pytest

from qserve.errors import BrokerRefused
from qserve.store import calls
from qserve.store.calls import MOST_PER_SWEEP
from qserve.wire.keys import GROUP
from tests.store.queue import numbers_of


@pytest.mark.leaves(pending=3, records=3, consumers=2)
async def test_a_replica_s_calls_are_told_oldest_first_and_nobody_else_s(queue):
    """They go back to the front in this order; another replica's calls run on."""
    await queue.put(1, 2, 3)
    await queue.claim("r1", count=2)
    await queue.claim("r2")

    assert numbers_of(await held_by(queue, "r1")) == [1, 2]
    assert numbers_of(await held_by(queue, "r2")) == [3]


@pytest.mark.leaves(pending=2 * MOST_PER_SWEEP + 1, records=2 * MOST_PER_SWEEP + 1, consumers=1)
async def test_more_than_a_page_is_told_in_pages(queue):
    """A script blocks the server while it runs, so it is bounded; what is behind its bound must not be forgotten."""
    numbers = list(range(2 * MOST_PER_SWEEP + 1))
    await queue.put(*numbers)
    await queue.claim("r1", count=len(numbers))

    assert len(await calls.pending(await queue.pipe(), queue.keys.calls, "r1")) == MOST_PER_SWEEP
    assert numbers_of(await held_by(queue, "r1")) == numbers


@pytest.mark.leaves(pending=3, consumers=1)
async def test_large_envelopes_fill_a_page_sooner(queue, server, monkeypatch):
    """A hundred calls of 64 MiB would be 6 GiB in one reply."""
    monkeypatch.setattr(calls, "_SWEEP_BYTES", 100_000)
    for _ in range(3):
        server.xadd(queue.keys.calls, {"c": b"x" * 100_000})
    await queue.claim("r1")

    assert len(await calls.pending(await queue.pipe(), queue.keys.calls, "r1")) == 1
    assert len(await held_by(queue, "r1")) == 3


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_deleted_entries_are_acknowledged_and_hide_nothing(queue, server):
    """An XDEL by hand leaves the entry pending for ever; a page full of such must not look like the end."""
    numbers = range(1, MOST_PER_SWEEP + 3)
    await queue.put(*numbers)
    held = await queue.claim("r1", count=len(numbers))
    server.xdel(queue.keys.calls, *(entry.entry_id for entry in held[:-1]))
    await queue.forget(*numbers[:-1])

    assert await calls.pending(await queue.pipe(), queue.keys.calls, "r1") == held[-1:]
    assert await queue.lengths() == (1, 1)


async def test_without_a_group_nothing_is_held(queue, server):
    """After a FLUSH a dead replica holds nothing; saying so lets its worker go on."""
    server.xgroup_destroy(queue.keys.calls, GROUP)

    assert await held_by(queue, "r1") == []
    await queue.open()


async def test_trouble_is_not_taken_for_nothing_held(queue, server):
    """Whoever believes that a replica holds nothing deletes its consumer, and with it what it holds."""
    server.delete(queue.keys.calls)
    server.set(queue.keys.calls, "junk")

    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        await held_by(queue, "r1")
    server.delete(queue.keys.calls)


@pytest.mark.leaves(pending=5, consumers=1)
async def test_entries_that_qserve_did_not_write_are_told_too(queue, server):
    """Anybody who reaches Redis can add entries: they must be put into quarantine, not stop the sweep."""
    nines = b"9" * 5000  # more digits than int() converts
    for fields in ({"a": "x"}, {"c": b"\xff\x00", "a": "-1"}, {"a": nines}, {"z": "1"}, {"c": "", "a": "7"}):
        server.xadd(queue.keys.calls, fields)

    taken = await queue.claim("r1")
    assert [entry.attempt for entry in taken] == [1, 1, 1, 1, 7]
    assert await held_by(queue, "r1") == taken


async def held_by(queue, replica):
    """All that a replica holds of the stream of calls."""
    return await calls.all_pending(await queue.pipe(), queue.keys.calls, replica)
