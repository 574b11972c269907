"""Event loops and clusters end while others still wait for answers: nobody waits for ever."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import qserve as serve
from qserve.client import portal
from qserve.errors import BrokerUnavailable
from tests.store.until import until


def made_in_a_loop_that_ends(echo, wait):
    """A future of what `wait(response)` returns in a thread, for a response whose event loop has ended meanwhile."""
    pool = ThreadPoolExecutor(1)

    async def call():
        response = echo.remote(1)
        waiting = pool.submit(wait, response)
        await until(response.is_awaited, what="the thread waits")
        return waiting

    waiting = asyncio.run(call())
    pool.shutdown(wait=False)
    return waiting


@pytest.mark.parametrize(
    "wait",
    [
        lambda response: response.result(timeout_s=5),
        lambda response: asyncio.run(asyncio.wait_for(response, 5)),
        lambda response: next(serve.as_completed([response], timeout_s=5)).result(),
    ],
    ids=["result", "await", "as_completed"],
)
async def test_who_waits_in_a_thread_gets_the_answer_when_the_loop_that_called_has_ended(replica, echo, wait):
    """A thread was given the response of a loop that is gone: the process fetches the answer by another way."""
    waiting = await asyncio.to_thread(made_in_a_loop_that_ends, echo, wait)

    await replica.answer("late")

    assert await asyncio.wrap_future(waiting) == "late"


async def test_as_completed_finds_the_answers_of_a_loop_that_ended_before(replica, echo):
    """The responses of a finished `asyncio.run` are collected in a thread afterwards."""

    async def call():
        return echo.remote(1)

    response = await asyncio.to_thread(asyncio.run, call())
    await replica.answer("late")

    done = await asyncio.to_thread(lambda: list(serve.as_completed([response], timeout_s=5)))
    assert [one.result() for one in done] == ["late"]


async def test_a_loop_that_ends_starts_no_portal_when_nobody_waits(replica, echo):
    """Fire and forget is common: it must not cost a thread and two connections."""
    portal.use(portal.settings())

    async def call():
        response = echo.remote(1)
        task = asyncio.ensure_future(response)
        response.add_done_callback(print)
        await asyncio.wait([task], timeout=0)

    await asyncio.to_thread(asyncio.run, call())

    assert not [thread for thread in threading.enumerate() if thread.name == "qserve-portal"]


async def test_leaving_the_cluster_fails_what_a_thread_waits_for(replica, echo):
    """`serve.shutdown()` in one thread, `.result()` in another: the second must not hang."""
    response = await asyncio.to_thread(echo.remote, 1)
    waiting = asyncio.get_running_loop().run_in_executor(None, response.result)
    await until(response.is_awaited)

    await asyncio.to_thread(portal.use, None)

    with pytest.raises(BrokerUnavailable, match=r"left its cluster before 'Echo.__call__' was answered"):
        await waiting


async def test_leaving_the_cluster_fails_what_a_task_waits_for(replica, echo):
    """The same on an event loop that lives on."""
    response = echo.remote(1)
    waiting = asyncio.ensure_future(response)
    await until(lambda: response.confirmed)

    portal.use(None)

    with pytest.raises(BrokerUnavailable, match="left its cluster"):
        await waiting


def test_event_loops_that_have_ended_are_let_go_of(settings):
    """A web framework's sync views call `asyncio.run` for each request: memory must not grow with them."""

    async def connect():
        return weakref.ref(portal.current_core())

    cores = [asyncio.run(connect()) for _ in range(5)]
    gc.collect()

    assert sum(core() is not None for core in cores) <= 1
