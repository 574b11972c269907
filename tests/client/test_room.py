"""How many calls may be unresolved at once, and what does not count."""

from __future__ import annotations

import asyncio

from qserve.client import core
from qserve.client.portal import get_response
from qserve.wire.keys import request_id
from tests.store.until import until


async def test_an_event_loop_that_ends_stores_all_its_calls_however_many(replica, echo, monkeypatch):
    """A script that fires a million calls and ends: the limit is on what waits for answers, and nobody waits."""
    monkeypatch.setattr(core, "MAX_IN_FLIGHT", 10)

    async def fire():
        for number in range(45):
            echo.remote(number)

    await asyncio.to_thread(asyncio.run, fire())

    assert await replica.waiting() == 45


async def test_calls_that_were_made_elsewhere_take_no_room(replica, echo, monkeypatch):
    """A replica with many parked calls watches as many inputs: its own calls must leave, or the inputs never come."""
    others = [echo.remote(number) for number in range(3)]
    ids = [request_id("app", "Echo", other.call_id) for other in others]
    await until(lambda: all(other.confirmed for other in others))
    monkeypatch.setattr(core, "MAX_IN_FLIGHT", 2)

    async def call_beside_them():
        watched = [get_response(name) for name in ids]
        response = echo.remote("own")
        await until(lambda: response.confirmed)
        return [one.done() for one in watched]

    assert await asyncio.to_thread(asyncio.run, call_beside_them()) == [False] * 3
