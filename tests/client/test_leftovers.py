"""What a waiter leaves behind in the response that it waited for: nothing."""

from __future__ import annotations

import asyncio

import pytest

import qserve as serve
from tests.store.until import until

interrupts: list[bool] = []


class Slow:
    """Its unpickling is interrupted once, as by a Ctrl-C."""

    def __reduce__(self):
        return (load, ())


def load():
    """What it becomes."""
    if interrupts:
        interrupts.pop()
        raise KeyboardInterrupt
    return "loaded"


async def test_await_with_a_time_limit_may_be_repeated_for_ever(replica, echo):
    """A progress bar polls each 100 ms: an hour of it must not leave 36,000 callbacks."""
    response = echo.remote(1)

    for _ in range(5):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response, 0.001)

    assert response._callbacks == []


async def test_wait_in_a_thread_may_be_repeated_for_ever(replica, echo):
    """The same for `qserve.wait`, as code that came from `ray.wait` calls it."""
    response = echo.remote(1)

    for _ in range(5):
        assert await asyncio.to_thread(serve.wait, [response], timeout_s=0.001) == ([], [response])

    assert response._callbacks == []


async def test_an_interrupt_while_a_result_is_opened_is_not_the_calls_answer(replica, echo):
    """Ctrl-C in a notebook, and the cell is run again: the result is there."""
    response = echo.remote(1)
    await replica.answer(Slow())
    await until(response.done)
    interrupts.append(True)

    with pytest.raises(KeyboardInterrupt):
        response.result()
    assert response.result() == "loaded"


async def test_an_interrupt_is_not_returned_as_the_calls_exception(replica, echo):
    """`exception()` tells what the call raised, and this the call did not raise."""
    response = echo.remote(1)
    await replica.answer(Slow())
    await until(response.done)
    interrupts.append(True)

    with pytest.raises(KeyboardInterrupt):
        response.exception()
    assert response.exception() is None
