"""Many responses at once: asyncio's own tools take them as they are; `serve.get` and `serve.wait` are for threads."""

from __future__ import annotations

import asyncio
import secrets

import pytest

import qserve as serve
from qserve.errors import MethodNotFound
from tests.fundamentals.apps import Gate


@pytest.fixture(scope="module")
def gate(cluster):
    """A deployment whose calls wait until their gate is opened."""
    return serve.run(Gate.bind(), name="gate")


@pytest.fixture
def names():
    """Three gates of the test's own."""
    return [secrets.token_hex(4) for _ in range(3)]


@pytest.fixture
def responses(gate, names):
    """Three responses, made in a thread; each waits at its own gate and returns its number."""
    return [gate.wait.remote(name, number) for number, name in enumerate(names)]


async def test_gather_takes_responses(gate, names):
    """The first tool that everybody reaches for."""
    responses = [gate.wait.remote(name, number) for number, name in enumerate(names)]
    await asyncio.gather(*(gate.open.remote(name) for name in names))

    assert await asyncio.gather(*responses) == [0, 1, 2]


async def test_gather_with_exceptions_returns_them_in_place(gate, names):
    """One bad page of a batch must not hide the good ones."""
    await gate.open.remote(names[0])

    outcomes = await asyncio.gather(gate.wait.remote(names[0], 1), gate.nope.remote(), return_exceptions=True)
    assert outcomes[0] == 1
    assert isinstance(outcomes[1], MethodNotFound)


async def test_asyncio_wait_takes_responses_as_they_are(gate, names):
    """Ray Serve's must be wrapped in tasks first; these are futures enough."""
    first, *others = [gate.wait.remote(name, number) for number, name in enumerate(names)]
    await gate.open.remote(names[0])

    done, pending = await asyncio.wait([first, *others], return_when=asyncio.FIRST_COMPLETED)
    assert done == {first}
    assert pending == set(others)
    await asyncio.gather(*(gate.open.remote(name) for name in names))
    done, pending = await asyncio.wait([first, *others])
    assert len(done) == 3
    assert not pending


async def test_asyncio_wait_gives_up_after_its_timeout_and_cancels_nothing(gate, names):
    """A deadline of the caller leaves the calls alone."""
    response = gate.wait.remote(names[0], 42)

    done, pending = await asyncio.wait([response], timeout=0.05)
    assert (done, pending) == (set(), {response})
    await gate.open.remote(names[0])
    assert await response == 42


async def test_asyncio_wait_for_the_first_exception_sees_it(gate, names):
    """Fail fast over many calls."""
    waiting, failing = gate.wait.remote(names[0]), gate.nope.remote()

    done, _pending = await asyncio.wait([waiting, failing], return_when=asyncio.FIRST_EXCEPTION)
    assert failing in done
    await gate.open.remote(names[0])


async def test_asyncio_as_completed_gives_results_in_order_of_arrival(gate, names):
    """Show each result when it is there."""
    responses = [gate.wait.remote(name, number) for number, name in enumerate(names)]
    arrived = []
    opening = iter([names[2], names[0], names[1]])

    await gate.open.remote(next(opening))
    for earliest in asyncio.as_completed(responses):
        arrived.append(await earliest)
        if (name := next(opening, None)) is not None:
            await gate.open.remote(name)
    assert arrived == [2, 0, 1]


async def test_wait_for_returns_the_value(gate, names):
    """A time limit around one call, in asyncio's words."""
    await gate.open.remote(names[0])

    assert await asyncio.wait_for(gate.wait.remote(names[0], 42), timeout=5) == 42


async def test_asyncio_timeout_is_fine_too(gate, names):
    """The modern form of the same."""
    response = gate.wait.remote(names[0], 42)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await response

    await gate.open.remote(names[0])
    async with asyncio.timeout(5):
        assert await response == 42


async def test_a_task_group_takes_responses_through_a_coroutine(gate, names):
    """Structured concurrency needs coroutines; a one-line one will do."""

    async def fetch(number):
        return await gate.wait.remote(names[number], number)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(fetch(number)) for number in range(3)]
        await asyncio.gather(*(gate.open.remote(name) for name in names))
    assert [task.result() for task in tasks] == [0, 1, 2]


def test_get_returns_one_result_or_a_list_in_order(gate, names, responses):
    """What `ray.get` did."""
    for name in reversed(names):
        gate.open.remote(name)

    assert serve.get(responses[1], timeout_s=5) == 1
    assert serve.get(responses, timeout_s=5) == [0, 1, 2]


def test_get_has_one_time_limit_for_all(gate, names, responses):
    """Ten responses with a limit of a second must not take ten."""
    gate.open.remote(names[0])

    with pytest.raises(TimeoutError):
        serve.get(responses, timeout_s=0.1)
    for name in names:
        gate.open.remote(name)
    assert serve.get(responses, timeout_s=5) == [0, 1, 2]


def test_wait_returns_done_and_pending(gate, names, responses):
    """What `ray.wait` did: work on the first ones while the others run."""
    gate.open.remote(names[1])

    done, pending = serve.wait(responses, num_returns=1, timeout_s=5)
    assert done == [responses[1]]
    assert pending == [responses[0], responses[2]]


def test_wait_gives_up_after_its_timeout(responses):
    """It returns what is there, and raises nothing: that is how `ray.wait` polls."""
    assert serve.wait(responses, num_returns=3, timeout_s=0.05) == ([], responses)


def test_wait_for_more_than_there_are_is_refused(responses):
    """It would wait for ever."""
    with pytest.raises(ValueError, match="num_returns=4 is not within"):
        serve.wait(responses, num_returns=4)


def test_as_completed_yields_responses_as_they_get_done(gate, names, responses):
    """A thread shows each result when it is there."""
    arrived = []
    opening = iter([names[2], names[0], names[1]])

    gate.open.remote(next(opening))
    for response in serve.as_completed(responses, timeout_s=5):
        arrived.append(response.result())
        if (name := next(opening, None)) is not None:
            gate.open.remote(name)
    assert arrived == [2, 0, 1]


def test_as_completed_raises_when_its_time_is_over(gate, names, responses):
    """A loop over results must end, also when a call does not."""
    gate.open.remote(names[0])
    completed = serve.as_completed(responses, timeout_s=0.2)

    assert next(completed) is responses[0]
    with pytest.raises(TimeoutError, match="2 of 3 responses are not done"):
        next(completed)
