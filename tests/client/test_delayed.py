"""Delayed calls as their caller has them: they take no room, and cost nothing while nobody waits for them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from datetime import UTC, datetime, timedelta

import pytest

from qserve.client import core, inbox
from qserve.client.delayed import MOST_DELAY_S, due
from qserve.client.portal import current_core, get_response
from qserve.errors import DeploymentUnavailableError, UsageError
from qserve.spec import CallState
from qserve.store import calls, delayed
from qserve.store.delayed import Due
from tests.store.until import until

NOW_S = 1_800_000_000.0
MOMENT = datetime(2027, 6, 1, 12, 0, tzinfo=UTC)


async def release(replica) -> int:
    """Move all delayed calls into the queue, as if their time had come."""
    ids = await replica.link.call("ZRANGE", replica.keys.delayed, 0, -1)
    return await delayed.release(replica.link, replica.keys, ids)


async def stored(*responses) -> None:
    """Wait until Redis has these calls."""
    await until(lambda: all(response.confirmed for response in responses))


# What may be given


@pytest.mark.parametrize(
    ("delay_s", "at", "meant"),
    [
        (None, None, None),
        (0, None, None),
        (1.5, None, Due(1500, after=True)),
        (None, MOMENT, Due(round(MOMENT.timestamp() * 1000), after=False)),
        (None, MOMENT.astimezone(), Due(round(MOMENT.timestamp() * 1000), after=False)),
        (None, NOW_S + 60, Due(round((NOW_S + 60) * 1000), after=False)),
        (None, NOW_S - 60, None),
    ],
)
def test_a_delay_or_a_moment_says_when(delay_s, at, meant):
    """Both are understood, and what has passed is now."""
    assert due(delay_s, at, NOW_S) == meant


@pytest.mark.parametrize(
    ("delay_s", "at", "said"),
    [
        (1, NOW_S, "say two things"),
        (-1, None, "0 s to"),
        (MOST_DELAY_S + 1, None, "a year"),
        (float("nan"), None, "no number of seconds"),
        (True, None, "no number of seconds"),
        ("10", None, "no number of seconds"),
        (timedelta(seconds=1), None, "no number of seconds"),
        (None, datetime(2027, 6, 1, 12, 0), "has no timezone"),  # noqa: DTZ001 (that is what is refused)
        (None, NOW_S * 1000, "seconds of the epoch"),
        (None, "noon", "no moment"),
    ],
)
def test_a_delay_that_is_none_is_refused_at_once(delay_s, at, said):
    """The line that is wrong raises, not the call that a year later did not run."""
    with pytest.raises(UsageError, match=said):
        due(delay_s, at, NOW_S)


def test_both_options_at_once_are_refused_by_the_handle(echo):
    """A caller that gives two times has a mistake in one of them."""
    with pytest.raises(UsageError, match="give one of them"):
        echo.options(delay_s=1, at=NOW_S)


# Room and memory


async def test_delayed_calls_take_no_room_from_others(replica, echo, monkeypatch):
    """A thousand reminders for tomorrow must not stop the calls of today."""
    monkeypatch.setattr(core, "MAX_IN_FLIGHT", 2)
    later = [echo.options(delay_s=3600).remote(number) for number in range(10)]
    waiters = [asyncio.ensure_future(asyncio.wait_for(response, 20)) for response in later[:5]]
    await stored(*later)

    response = echo.remote("now")
    await replica.answer("now")

    assert await asyncio.wait_for(response, 5) == "now"
    for waiter in waiters:
        waiter.cancel()


async def test_a_delayed_call_that_nobody_waits_for_is_not_kept_in_memory(replica, echo):
    """A backend makes a million of them a day, each due tomorrow; none of its memory is for them."""
    response = echo.options(delay_s=3600).remote(1)
    await stored(response)
    seen = weakref.ref(response)
    del response
    gc.collect()

    assert seen() is None


async def test_a_delayed_call_with_a_callback_is_kept_until_it_is_answered(replica, echo):
    """Nobody holds the response, but somebody asked to be told."""
    heard: list[object] = []
    response = echo.options(delay_s=3600).remote(1)
    response.add_done_callback(lambda done: heard.append(done.result()))
    await stored(response)
    del response
    gc.collect()

    await release(replica)
    await replica.answer("well")

    await until(lambda: heard == ["well"])


async def test_who_begins_to_wait_late_is_told_too(replica, echo):
    """The response lay in a list for an hour before somebody awaited it."""
    response = echo.options(delay_s=3600).remote(1)
    await stored(response)
    waiter = asyncio.ensure_future(asyncio.to_thread(response.result, timeout_s=10))

    await release(replica)
    await replica.answer("well")

    assert await waiter == "well"


async def test_who_only_looks_whether_it_is_done_is_told_too(replica, echo):
    """Nobody waits for it, but its user keeps it."""
    response = echo.options(delay_s=3600).remote(1)
    await stored(response)

    await release(replica)
    await replica.answer("well")

    await until(response.done)
    assert response.result() == "well"


async def test_a_reply_that_came_while_the_connection_was_down_is_found(replica, echo, server):
    """Notes are not told twice: after a reconnect delayed calls are looked up, too."""
    response = echo.options(delay_s=3600).remote(1)
    await stored(response)
    await release(replica)
    for client in server.client_list():
        if client["name"].endswith("-inbox"):
            server.client_kill_filter(_id=client["id"])
    await replica.answer("well")

    assert await asyncio.wait_for(response, 10) == "well"


async def test_a_sweep_lets_go_of_delayed_calls_that_nobody_waits_for_any_more(replica, echo, monkeypatch):
    """A web request gave up after a second; its call is due tomorrow."""
    monkeypatch.setattr(inbox, "SWEEP_S", 0.05)
    response = echo.options(delay_s=3600).remote(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(response, 0.2)
    seen = weakref.ref(response)
    await until(lambda: not current_core()._inbox.open)
    del response
    gc.collect()

    assert seen() is None


async def test_two_responses_of_one_delayed_call_in_one_process_are_both_answered(replica, echo):
    """One was made here, the other comes from its request id; one note answers both."""
    response = echo.options(delay_s=3600).remote(1)
    await stored(response)
    other = await asyncio.to_thread(get_response, response.request_id)
    same = get_response(response.request_id)

    await release(replica)
    await replica.answer("well")

    assert [await asyncio.wait_for(each, 10) for each in (response, same)] == ["well", "well"]
    assert await asyncio.to_thread(other.result, timeout_s=10) == "well"


# States


async def test_a_delayed_call_says_that_it_is_scheduled(replica, echo):
    """A person who looks at it must see that it does not wait for a replica."""
    response = echo.options(delay_s=3600).remote(1)
    assert await response.status_async() is CallState.SCHEDULED
    await stored(response)
    assert await response.status_async() is CallState.SCHEDULED

    await release(replica)

    assert await response.status_async() is CallState.QUEUED
    await replica.answer("well")


async def test_a_deployment_that_is_gone_refuses_a_delayed_call_now(replica, echo):
    """And not in an hour."""
    assert await calls.retire(replica.link, replica.keys)

    with pytest.raises(DeploymentUnavailableError):
        await asyncio.wait_for(echo.options(delay_s=3600).remote(1), 5)


async def test_delayed_calls_leave_beside_others_of_the_same_turn(replica, echo):
    """One turn of the event loop makes both kinds: each goes where it belongs."""
    responses = [echo.remote(1), echo.options(delay_s=3600).remote(2), echo.remote(3)]
    await stored(*responses)

    assert await replica.waiting() == 2
    assert await replica.link.call("ZCARD", replica.keys.delayed) == 1
