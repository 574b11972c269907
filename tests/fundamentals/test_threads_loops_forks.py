"""Where calls may come from: threads, event loops one by one and side by side, forked and spawned processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import qserve as serve
from qserve.handle import DeploymentHandle
from tests.fundamentals.apps import Gate
from tests.support.cluster import eventually


@serve.deployment(max_ongoing_requests=20)
class Adder:
    def __init__(self, other: DeploymentHandle[Any] | None = None) -> None:
        self._other = other
        self._noted: list[int] = []

    def __call__(self, number: int) -> int:
        return number + 1

    def through_a_thread(self, number: int) -> int:
        assert self._other is not None
        return int(self._other.remote(number).result(timeout_s=5))

    async def through_the_loop(self, number: int) -> int:
        assert self._other is not None
        return int(await self._other.remote(number))

    async def through_a_thread_of_the_loop(self, number: int) -> int:
        return await asyncio.to_thread(self.through_a_thread, number)

    def through_a_loop_of_the_thread(self, number: int) -> int:
        return asyncio.run(self.through_the_loop(number))

    async def blocks_the_loop(self, number: int) -> int:
        assert self._other is not None
        return int(self._other.remote(number).result())

    def note(self, number: int) -> None:
        self._noted.append(number)

    def noted(self) -> list[int]:
        return self._noted


@pytest.fixture(scope="module")
def adder(cluster):
    """A deployment that holds another of its kind."""
    return serve.run(Adder.bind(Adder.options(name="Inner").bind()), name="adder")


@pytest.fixture
def gate(cluster):
    """A deployment whose calls wait until their gate is opened."""
    return serve.run(Gate.bind(), name="gate")


def test_fifty_threads_share_one_handle(adder):
    """A threaded web server: each thread gets the answers to its own calls."""
    with ThreadPoolExecutor(50) as pool:
        answers = pool.map(lambda number: adder.remote(number).result(timeout_s=10), range(500))

    assert list(answers) == list(range(1, 501))


def test_asyncio_run_twice_and_a_thread_between(adder):
    """A script's event loops come and go; nothing of the first one may be in the way of the second."""

    async def total(numbers):
        return sum(await asyncio.gather(*(adder.remote(number) for number in numbers)))

    assert asyncio.run(total(range(10))) == 55
    assert adder.remote(1).result(timeout_s=5) == 2
    assert asyncio.run(total(range(10))) == 55


def test_several_event_loops_at_the_same_time(adder):
    """Threads with a loop each, as some web servers have: answers do not cross over."""

    async def calls(start):
        return await asyncio.gather(*(adder.remote(number) for number in range(start, start + 50)))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda start: asyncio.run(calls(start)), range(0, 400, 100)))
    assert answers == [list(range(start + 1, start + 51)) for start in range(0, 400, 100)]


async def test_async_code_and_threads_at_the_same_time(adder):
    """FastAPI runs `def` endpoints in threads beside the loop's `async def` ones."""
    in_threads = [asyncio.to_thread(_call, adder, number) for number in range(10)]
    in_the_loop = [adder.remote(number) for number in range(10)]

    assert await asyncio.gather(*in_threads) == await asyncio.gather(*in_the_loop)


def test_a_call_made_at_the_very_end_of_an_event_loop_runs(adder):
    """`asyncio.run(main())` whose last act is a call: the loop ends, the call has left before."""

    async def fire():
        adder.note.remote(4711)

    asyncio.run(fire())
    eventually(lambda: 4711 in adder.noted.remote().result(timeout_s=5))


def test_a_response_outlives_the_event_loop_that_made_it(adder, gate):
    """Made in one loop, fetched in a thread or in another loop: the response finds its own way."""

    async def submit():
        return [gate.wait.remote("later", number) for number in range(3)]

    first, second, third = asyncio.run(submit())
    assert first.status() in ("QUEUED", "RUNNING")

    async def fetch(response):
        return await response

    gate.open.remote("later")
    assert first.result(timeout_s=5) == 0
    assert asyncio.run(fetch(second)) == 1
    assert serve.get_response(third.request_id).result(timeout_s=5) == 2
    assert third.result(timeout_s=5) == 2


@pytest.mark.parametrize(
    "method", ["through_a_thread", "through_the_loop", "through_a_thread_of_the_loop", "through_a_loop_of_the_thread"]
)
async def test_inside_a_replica_all_of_these_work_too(adder, method):
    """A sync method blocks its own thread, an async one awaits; both may be mixed as anywhere."""
    calls = [adder.options(method_name=method).remote(number) for number in range(10)]

    assert await asyncio.gather(*calls) == list(range(1, 11))


def test_blocking_inside_an_async_method_is_refused(adder):
    """It would stop all calls of the replica; the error comes instead, and says what to write."""
    with pytest.raises(RuntimeError, match="Use `await response` instead"):
        adder.blocks_the_loop.remote(1).result(timeout_s=5)


def in_a_forked_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a child of this very process; its exception's text if it raises."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001 (the parent shall see it)
            answer = repr(error)
        os.write(writing, pickle.dumps(answer))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 (a descriptor has no path)
        data = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(data)


def test_after_a_fork_child_and_parent_both_call(adder):
    """Web servers load the application, then fork: each process gets connections of its own."""
    assert adder.remote(1).result(timeout_s=5) == 2

    assert in_a_forked_child(lambda: [adder.remote(n).result(timeout_s=5) for n in range(20)]) == list(range(1, 21))
    assert [adder.remote(n).result(timeout_s=5) for n in range(20)] == list(range(1, 21))


def test_after_a_fork_the_child_may_use_asyncio(adder):
    """An async server's worker process after a preload."""

    async def calls():
        return await asyncio.gather(*(adder.remote(number) for number in range(20)))

    adder.remote(1).result(timeout_s=5)
    assert in_a_forked_child(lambda: asyncio.run(calls())) == list(range(1, 21))
    assert asyncio.run(calls()) == list(range(1, 21))


def test_a_response_from_before_the_fork_is_fetched_in_child_and_parent(adder, gate):
    """The parent's reader thread does not exist in the child; the response asks the child's own."""
    response = gate.wait.remote("fork", 42)

    def open_and_fetch():
        gate.open.remote("fork")
        return response.result(timeout_s=5)

    assert in_a_forked_child(open_and_fetch) == 42
    assert response.result(timeout_s=5) == 42


def _call(handle: DeploymentHandle[Any], number: int) -> int:
    return int(handle.remote(number).result(timeout_s=10))


def test_a_spawned_process_is_given_a_handle(adder, settings, monkeypatch):
    """multiprocessing pickles the handle; the process finds the cluster in its environment."""
    for name, value in settings.child_env().items():
        monkeypatch.setenv(name, value)

    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(_call, [(adder, number) for number in range(4)]) == [1, 2, 3, 4]


def test_many_threads_open_the_first_connection_together(adder, settings):
    """The first calls of a process may come all at once; there is one portal all the same."""
    serve.client.portal.use(settings)
    start = threading.Barrier(20)

    def call(number):
        start.wait()
        return adder.remote(number).result(timeout_s=10)

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(call, range(20))) == list(range(1, 21))
    assert sum(thread.name == "qserve-portal" for thread in threading.enumerate()) == 1
