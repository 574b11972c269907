"""Composition: deployments hold handles of other deployments, and call them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

import qserve as serve
from qserve.handle import DeploymentHandle


@serve.deployment
class Downstream:
    def __init__(self, mark: str = "") -> None:
        self._mark = mark

    def say_hi(self, message: str) -> str:
        return f"Hello {message}!{self._mark}"

    def replica(self) -> str:
        return serve.get_replica_context().replica_id


@serve.deployment
class Caller:
    """The first example of every page on composition."""

    def __init__(self, downstream: DeploymentHandle[Any]) -> None:
        self._downstream_handle = downstream

    async def __call__(self, message: str) -> str:
        greeting: str = await self._downstream_handle.say_hi.remote(message)
        return greeting

    def in_a_thread(self, message: str) -> str:
        greeting: str = self._downstream_handle.say_hi.remote(message).result(timeout_s=5)
        return greeting

    async def both(self, messages: list[str]) -> list[str]:
        return list(await asyncio.gather(*(self._downstream_handle.say_hi.remote(message) for message in messages)))

    async def handle(self) -> DeploymentHandle[Any]:
        return self._downstream_handle

    async def call(self, handle: DeploymentHandle[Any], message: str) -> str:
        greeting: str = await handle.say_hi.remote(message)
        return greeting


@dataclass
class Team:
    lead: Any
    others: list[Any]


@serve.deployment
class Ensemble:
    """Takes handles in any wrapping."""

    def __init__(self, listed: list[Any], *, named: dict[str, Any], team: Team) -> None:
        self._handles = [*listed, *named.values(), team.lead, *team.others]

    async def kinds(self) -> list[str]:
        return [type(handle).__name__ for handle in self._handles]

    async def ask_all(self, message: str) -> list[str]:
        return list(await asyncio.gather(*(handle.say_hi.remote(message) for handle in self._handles)))

    async def replicas(self) -> list[str]:
        return list(await asyncio.gather(*(handle.replica.remote() for handle in self._handles)))


@pytest.fixture(scope="module")
def caller(cluster):
    """`Caller` in front of `Downstream`."""
    return serve.run(Caller.bind(Downstream.bind()), name="caller")


def test_a_deployment_awaits_another(caller):
    """`bind()` of one inside `bind()` of the other: in the replica it is a handle."""
    assert caller.remote("world").result(timeout_s=5) == "Hello world!"


async def test_a_sync_method_blocks_on_result(caller):
    """Code that knows no asyncio composes too: its thread waits, the replica goes on."""
    assert await caller.in_a_thread.remote("thread") == "Hello thread!"


async def test_calls_of_one_method_run_side_by_side(caller):
    """Fan-out is asyncio.gather; nothing new has to be learned."""
    assert await caller.both.remote(["a", "b"]) == ["Hello a!", "Hello b!"]


async def test_a_handle_travels_as_an_argument_and_as_a_result(caller):
    """A handle is a name, not a connection: it works wherever it arrives."""
    handle = await caller.handle.remote()

    assert await handle.say_hi.remote("direct") == "Hello direct!"
    assert await caller.call.remote(handle, "again") == "Hello again!"


async def test_applications_nested_anywhere_in_the_arguments_become_handles(cluster):
    """A list of models, a dict of routes, a settings object: the constructor takes the shape that suits it."""
    one, two, three, four = (Downstream.options(name=f"D{number}").bind(str(number)) for number in range(1, 5))
    handle = serve.run(Ensemble.bind([one], named={"two": two}, team=Team(three, [four])), name="nested")

    assert await handle.kinds.remote() == ["DeploymentHandle"] * 4
    assert await handle.ask_all.remote("you") == [f"Hello you!{number}" for number in range(1, 5)]


async def test_the_same_application_object_twice_is_one_deployment(cluster):
    """A shared cache or model is loaded once, however many hold its handle."""
    shared = Downstream.bind()
    handle = serve.run(Ensemble.bind([shared], named={"again": shared}, team=Team(shared, [])), name="shared")

    assert len(set(await handle.replicas.remote())) == 1
    assert set(serve.status().applications["shared"].deployments) == {"Ensemble", "Downstream"}


async def test_different_applications_of_one_name_are_told_apart(cluster):
    """Two models of one class need no names by hand; the second is called `Downstream_1`."""
    handle = serve.run(
        Ensemble.bind([Downstream.bind("a")], named={}, team=Team(Downstream.bind("b"), [])), name="twins"
    )

    assert await handle.ask_all.remote("you") == ["Hello you!a", "Hello you!b"]
    assert set(serve.status().applications["twins"].deployments) == {"Ensemble", "Downstream", "Downstream_1"}


async def test_a_chain_of_three_deployments_passes_the_answer_through(cluster):
    """Gateways in front of gateways; each only knows the next."""
    inner = Caller.options(name="Inner").bind(Downstream.bind())
    outer = serve.run(Passing.bind(inner), name="three")

    assert await outer.remote("end") == "Hello end!"


@serve.deployment
class Crowd:
    """Makes many calls at once, and tells what became of them."""

    def __init__(self, busy: DeploymentHandle[Any]) -> None:
        self._busy = busy

    async def __call__(self) -> list[str]:
        answers = (self._busy.say_hi.remote("you") for _ in range(20))
        return [type(answer).__name__ for answer in await asyncio.gather(*answers, return_exceptions=True)]


async def test_a_full_queue_refuses_calls_of_deployments_too(cluster):
    """`max_queued_requests` protects a deployment from whoever calls it; most calls come from other deployments."""
    busy = Downstream.options(name="Busy", max_ongoing_requests=1, max_queued_requests=2)
    handle = serve.run(Crowd.bind(busy.bind()), name="crowd")
    became = await handle.remote()

    assert set(became) == {"str", "BackPressureError"}


@serve.deployment
class Passing:
    def __init__(self, next_one: DeploymentHandle[Any]) -> None:
        self._next = next_one

    async def __call__(self, message: str) -> Any:
        return await self._next.remote(message)
