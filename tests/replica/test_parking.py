"""Calls that wait for their inputs: without a slot, not without a limit, and never more of them at work than slots."""

from __future__ import annotations

import asyncio

import pytest

from qserve.errors import MethodNotFound
from qserve.replica import serve as replica
from tests.replica.room import Work, handle
from tests.store.until import until


class Source:
    """Other calls' inputs, which come when their gates are open."""

    def __init__(self) -> None:
        self.gate, self.other_gate = asyncio.Event(), asyncio.Event()

    async def late(self) -> int:
        await self.gate.wait()
        return 1

    async def fails_late(self) -> None:
        await self.other_gate.wait()
        raise ValueError("no number")


async def test_a_failed_input_frees_no_slot(room):
    """The call that it answers had none: starting another would be one more than max_ongoing_requests allows."""
    work, source = Work(), Source()
    server = await room.start("Work", work)
    await room.start("Source", source, slots=10)
    calls, inputs = handle("Work"), handle("Source")
    ready, fails = calls.hold.remote(inputs.late.remote()), calls.hold.remote(inputs.fails_late.remote())
    await until(lambda: len(server._parked) == 2)
    held = calls.hold.remote()
    await until(lambda: work.now)
    source.gate.set()
    await until(lambda: server._ready)

    source.other_gate.set()
    with pytest.raises(ValueError, match="no number"):
        await fails
    assert work.most == 1
    work.gate.set()
    await asyncio.gather(held, ready)


async def test_hundreds_of_calls_that_fail_at_once_are_all_answered(room):
    """Each of them starts the next: nested in one another, they would overflow the stack and be lost."""
    work, source = Work(), Source()
    server = await room.start("Work", work)
    await room.start("Source", source, slots=10)
    calls = handle("Work")
    late = handle("Source").late.remote()
    unknown = [calls.no_such_method.remote(late) for _ in range(500)]
    await until(lambda: len(server._parked) == 500)
    held = calls.hold.remote()
    await until(lambda: work.now)
    source.gate.set()
    await until(lambda: len(server._ready) == 500)

    work.gate.set()
    outcomes = await asyncio.wait_for(asyncio.gather(held, *unknown, return_exceptions=True), 10)
    assert {type(outcome) for outcome in outcomes[1:]} == {MethodNotFound}


async def test_parked_calls_have_a_limit_and_hold_up_nobody(room, monkeypatch):
    """Each is kept with all its arguments: without a limit a slow input fills the memory of those that wait for it."""
    monkeypatch.setattr(replica, "MOST_PARKED", 3)
    source = Source()
    server = await room.start("Work", Work())
    await room.start("Source", source, slots=10)
    calls = handle("Work")
    late = handle("Source").late.remote()
    waiting = [calls.echo.remote([late, number]) for number in range(10)]
    await until(lambda: len(server._parked) == 3)

    assert await asyncio.wait_for(calls.echo.remote("now"), 5) == "now"
    assert len(server._parked) == 3
    source.gate.set()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [[1, number] for number in range(10)]


async def test_parked_calls_of_a_replica_that_drains_run_elsewhere_uncharged(room):
    """They have not begun: a rolling restart must not use up their attempts."""
    source, other = Source(), Work()
    server = await room.start("Work", Work(), slots=50)
    await room.start("Source", source, slots=10)
    calls = handle("Work")
    late = handle("Source").late.remote()
    waiting = [calls.hold.remote(late) for _ in range(250)]
    await until(lambda: len(server._parked) == 250)

    await server.drain(5.0)
    other.gate.set()
    await room.start("Work", other, slots=50, number=2)
    source.gate.set()
    await asyncio.wait_for(asyncio.gather(*waiting), 10)

    assert other.attempts == {1}
