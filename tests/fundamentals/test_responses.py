"""`DeploymentResponse`: a call's answer, fetched as often as you like, from anywhere, with or without a time limit."""

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
def name():
    """A gate of the test's own."""
    return secrets.token_hex(4)


@pytest.fixture
def answered(gate, name):
    """A response whose call returns 42 without waiting."""
    gate.open.remote(name).result(timeout_s=5)
    return gate.wait.remote(name, 42)


def test_result_returns_the_same_value_each_time(answered):
    """A response is a value that is on its way, not a message that is gone once read."""
    assert [answered.result(timeout_s=5) for _ in range(3)] == [42, 42, 42]


async def test_a_response_is_awaited_many_times(answered):
    """Two tasks may wait for one answer without arranging who reads it."""
    assert [await answered for _ in range(3)] == [42, 42, 42]
    assert list(await asyncio.gather(answered, answered)) == [42, 42]


def test_result_and_await_may_be_mixed_from_several_loops(answered):
    """Code that is half ported to asyncio need not know who made a response."""

    async def fetch():
        return await answered

    assert asyncio.run(fetch()) == 42
    assert answered.result() == 42
    assert asyncio.run(fetch()) == 42


def test_a_response_made_in_a_thread_wakes_an_event_loop_that_waits_for_it(gate, name):
    """The answer may come while the other loop sleeps: it must be told, not polled."""
    response = gate.wait.remote(name, 42)

    async def fetch():
        waiting = asyncio.ensure_future(response)
        await gate.open.remote(name)
        return await waiting

    assert asyncio.run(fetch()) == 42


def test_the_timeout_is_a_keyword(answered):
    """`result(5)` reads like "the fifth result": Ray Serve refuses it, and so does qserve."""
    with pytest.raises(TypeError):
        answered.result(1)


async def test_result_inside_a_running_event_loop_is_refused(gate, name):
    """It would block the loop that has to bring the answer; the error says what to write instead."""
    response = gate.wait.remote(name)

    with pytest.raises(RuntimeError, match=r"Sync methods should not be called.*Use `await response` instead"):
        response.result()
    await gate.open.remote(name)
    await response


def test_a_timeout_raises_and_the_call_goes_on(gate, name):
    """A web request may give up while the work is still worth doing: fetch it later."""
    response = gate.wait.remote(name, 42)

    with pytest.raises(TimeoutError, match=r"No reply from 'Gate.wait' within 0.05 s. The call goes on"):
        response.result(timeout_s=0.05)
    gate.open.remote(name)
    assert response.result(timeout_s=5) == 42


def test_a_timeout_of_zero_looks_once(gate, name):
    """A poll must not wait."""
    response = gate.wait.remote(name, 42)

    with pytest.raises(TimeoutError):
        response.result(timeout_s=0)
    gate.open.remote(name).result(timeout_s=5)
    assert response.result(timeout_s=5) == 42
    assert response.result(timeout_s=0) == 42


async def test_wait_for_that_expires_does_not_cancel_the_call(gate, name):
    """A caller's patience is not the call's: only `response.cancel()` is to end it."""
    response = gate.wait.remote(name, 42)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(response, 0.05)
    assert not response.cancelled()
    await gate.open.remote(name)
    assert await asyncio.wait_for(response, 5) == 42


async def test_cancelling_a_task_that_awaits_does_not_cancel_the_call(gate, name):
    """One of several who wait may leave; the others get the answer."""
    response = gate.wait.remote(name, 42)
    leaving, staying = asyncio.ensure_future(response), asyncio.ensure_future(response)

    leaving.cancel()
    await gate.open.remote(name)
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await staying == 42


async def test_done_and_exception_are_those_of_a_future(gate, name):
    """Code written for futures asks these."""
    response = gate.wait.remote(name, 42)

    assert not response.done()
    with pytest.raises(asyncio.InvalidStateError):
        response.exception()
    await gate.open.remote(name)
    await response
    assert response.done()
    assert response.exception() is None
    assert not response.cancelled()


async def test_exception_returns_what_await_raises(gate):
    """Many responses are sorted into good and bad without a try around each."""
    response = gate.nothing_of_this_name.remote()
    await asyncio.wait([response])

    assert isinstance(response.exception(), MethodNotFound)


async def test_a_done_callback_runs_on_the_event_loop_that_added_it(gate, name):
    """Callbacks touch the state of their loop, so that is where they must run."""
    heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    response = gate.wait.remote(name, 42)
    response.add_done_callback(heard.set_result)

    await gate.open.remote(name)
    assert await heard is response


def test_a_done_callback_from_a_thread_is_called_too(gate, name):
    """concurrent.futures has it, and libraries of threads use it."""
    heard = []
    response = gate.wait.remote(name, 42)
    response.add_done_callback(lambda done: heard.append(done.result()))
    response.add_done_callback(heard.append)
    assert response.remove_done_callback(heard.append) == 1

    gate.open.remote(name)
    response.result(timeout_s=5)
    assert heard == [42]


def test_a_done_callback_added_late_is_called_at_once(answered):
    """Whoever comes late must not wait for ever."""
    heard: list[object] = []
    answered.result(timeout_s=5)

    answered.add_done_callback(heard.append)
    assert heard == [answered]


def test_responses_are_compared_by_identity(gate, name):
    """They are keys of dicts and members of sets, as futures are."""
    one, other = gate.waiting.remote(name), gate.waiting.remote(name)

    assert one != other
    assert len({one, other, one}) == 2


def test_repr_names_the_call_and_whether_it_is_done(answered):
    """A response in a log line or a debugger says what it is."""
    answered.result(timeout_s=5)

    assert repr(answered).startswith("<DeploymentResponse gate.Gate.wait ")
    assert repr(answered).endswith(" done>")
