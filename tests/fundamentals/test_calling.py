"""Calling a deployment: a handle names a method, `.remote(...)` makes the call, the response is its answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

import qserve as serve
from tests.support.cluster import eventually


@serve.deployment
class Greeter:
    def __init__(self, greeting: str, *, mark: str = "!") -> None:
        self.greeting = greeting
        self.mark = mark
        self.remembered: list[str] = []

    def __call__(self, name: str) -> str:
        return f"{self.greeting} {name}"

    def say_hi(self) -> str:
        return "hi"

    async def shout(self, name: str, *, times: int = 1) -> str:
        await asyncio.sleep(0)
        return f"{self.greeting} {name}".upper() + self.mark * times

    def remember(self, name: str) -> None:
        self.remembered.append(name)

    def names(self) -> list[str]:
        return self.remembered

    def thread(self) -> str:
        return threading.current_thread().name

    async def async_thread(self) -> str:
        return threading.current_thread().name

    @staticmethod
    def add(a: int, b: int) -> int:
        return a + b

    @classmethod
    def kind(cls) -> str:
        return cls.__name__


@serve.deployment
def double(number: int) -> int:
    """A deployment without a class."""
    return 2 * number


@serve.deployment
async def triple(number: int) -> int:
    """An async one."""
    await asyncio.sleep(0)
    return 3 * number


@pytest.fixture(scope="module")
def greeter(cluster):
    """The handle that `serve.run` returns."""
    return serve.run(Greeter.bind("hello", mark="?"), name="greeter")


def test_a_method_is_called_by_its_name(greeter):
    """The first line of every tutorial: deploy a class, call one of its methods."""
    assert greeter.say_hi.remote().result(timeout_s=5) == "hi"


def test_the_handle_itself_calls_dunder_call(greeter):
    """Most model servers have one method; they need no name for it."""
    assert greeter.remote("world").result(timeout_s=5) == "hello world"


async def test_a_response_is_awaited_in_async_code(greeter):
    """A web endpoint awaits the call as it awaits anything else; its event loop is free meanwhile."""
    assert await greeter.remote("world") == "hello world"


def test_keyword_arguments_arrive_as_such(greeter):
    """The call looks like the method's own call, so that nothing has to be learned."""
    assert greeter.shout.remote("world", times=3).result(timeout_s=5) == "HELLO WORLD???"
    assert greeter.shout.remote(times=2, name="you").result(timeout_s=5) == "HELLO YOU??"


def test_a_sync_method_runs_in_a_thread_and_an_async_one_on_the_event_loop(greeter):
    """A blocking model must not stop the replica's event loop, and a coroutine needs it."""
    assert greeter.thread.remote().result(timeout_s=5).startswith("qserve-call")
    assert greeter.async_thread.remote().result(timeout_s=5) == "MainThread"


def test_static_and_class_methods_are_methods_too(greeter):
    """Whatever can be called on an instance can be called through its handle."""
    assert greeter.add.remote(1, 2).result(timeout_s=5) == 3
    assert greeter.kind.remote().result(timeout_s=5) == "Greeter"


def test_the_instance_lives_as_long_as_its_replica(greeter):
    """A model is loaded once; what one call leaves on `self`, the next one finds."""
    greeter.remember.remote("Ada").result(timeout_s=5)

    assert "Ada" in greeter.names.remote().result(timeout_s=5)


def test_a_call_runs_even_if_nobody_fetches_its_response(greeter):
    """Calls are eager: fire and forget is a call whose response is dropped."""
    greeter.remember.remote("Grace")

    eventually(lambda: "Grace" in greeter.names.remote().result(timeout_s=5))


async def test_a_dropped_response_in_async_code_does_not_stop_its_call(greeter):
    """The same from an event loop, where a forgotten coroutine would never have run."""
    greeter.remember.remote("Alan")

    while "Alan" not in await greeter.names.remote():
        pass


def test_a_thousand_calls_in_flight_are_answered_each_with_its_own_result(cluster):
    """Answers come back in any order; each finds its own caller."""
    handle = serve.run(double.bind(), name="many")

    responses = [handle.remote(number) for number in range(1000)]

    assert [response.result(timeout_s=10) for response in responses] == [2 * number for number in range(1000)]


async def test_a_function_is_a_deployment_too(cluster):
    """Not everything needs a class."""
    handle = serve.run(double.bind(), name="double")

    assert await handle.remote(21) == 42


async def test_an_async_function_is_a_deployment_too(cluster):
    """A function that only waits for others should not hold a thread."""
    handle = serve.run(triple.bind(), name="triple")

    assert await handle.remote(14) == 42


async def test_a_function_deployment_ignores_the_method_name(cluster):
    """Ray Serve does so too: a function has nothing else to call."""
    handle = serve.run(double.bind(), name="nameless")

    assert await handle.any_name.remote(21) == 42


def test_options_of_the_decorator_and_of_options_meet(cluster):
    """The decorator has the defaults of the code, `.options()` those of one place that deploys it."""
    loud = Greeter.options(name="Loud", num_replicas=2, max_ongoing_requests=10)
    handle = serve.run(loud.bind("hey"), name="loud")

    assert handle.deployment_name == "Loud"
    assert handle.remote("you").result(timeout_s=5) == "hey you"
    assert serve.status().applications["loud"].deployments["Loud"].replica_states == {"RUNNING": 2}
    assert Greeter.name == "Greeter", "the original is left alone"
