"""Responses as arguments: pass an answer on before it is there. The replica waits for it, without a slot."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import pytest

import qserve as serve
from qserve.handle import DeploymentHandle
from tests.fundamentals.apps import Gate


@dataclass
class Order:
    amount: Any
    items: list[Any]


@serve.deployment
class Adder:
    def add(self, number: int) -> int:
        return number + 1


@serve.deployment
class Twice:
    """Adds one twice: its first call's response goes straight into the second."""

    def __init__(self, adder: DeploymentHandle[Any]) -> None:
        self._adder = adder

    async def __call__(self, start: int) -> int:
        total: int = await self._adder.add.remote(self._adder.add.remote(start))
        return total


@serve.deployment(max_ongoing_requests=1)
class Sums:
    """One slot: a call that waited in it for its inputs would wait for ever."""

    def __init__(self) -> None:
        self._ran: list[str] = []

    def one(self) -> int:
        return 1

    def add(self, first: int, second: int = 0) -> int:
        return first + second

    def add_all(self, numbers: list[int]) -> int:
        return sum(numbers)

    def price(self, order: Order) -> int:
        return int(order.amount * sum(order.items))

    def fails(self) -> None:
        raise ValueError("no number")

    def note(self, name: str, _value: object = None) -> None:
        self._ran.append(name)

    def noted(self) -> list[str]:
        return self._ran


@pytest.fixture(scope="module")
def sums(cluster):
    """The handle of a deployment with one replica and one slot."""
    return serve.run(Sums.bind(), name="sums")


def test_the_adder_of_the_first_page_makes_two_of_zero(cluster):
    """A response is passed on inside a replica, before it is there."""
    handle = serve.run(Twice.bind(Adder.bind()), name="twice")

    assert handle.remote(0).result(timeout_s=5) == 2


async def test_positional_and_keyword_arguments_are_replaced_by_their_values(sums):
    """The callee sees numbers; it need not know that they were calls."""
    assert await sums.add.remote(sums.one.remote(), second=sums.one.remote()) == 2


def test_the_same_works_from_a_thread(sums):
    """The caller of a script has no event loop, and needs none for this."""
    assert sums.add.remote(sums.one.remote(), second=sums.one.remote()).result(timeout_s=5) == 2


async def test_responses_inside_lists_dicts_and_dataclasses_are_replaced_too(sums):
    """Ray Serve refuses these; here a response may stand wherever its value may."""
    order = Order(amount=sums.one.remote(), items=[2, sums.add.remote(1, 2)])

    assert await sums.add_all.remote([sums.one.remote(), 2, sums.one.remote()]) == 4
    assert await sums.price.remote(order) == 5


async def test_a_chain_through_one_slot_cannot_deadlock(sums):
    """A call that waits for its inputs is parked: the slot is free for those that it waits for."""
    total = sums.one.remote()
    for _ in range(20):
        total = sums.add.remote(total, sums.one.remote())

    assert await total == 21


async def test_one_response_feeds_many_calls_and_runs_once(sums):
    """A shared first step, such as an embedding, is computed once and used by many."""
    shared = sums.one.remote()

    assert await sums.add_all.remote([sums.add.remote(shared, number) for number in range(10)]) == 10 + sum(range(10))
    assert await shared == 1


async def test_a_response_that_was_fetched_already_can_still_be_passed_on(sums):
    """Looking at a value must not spoil it for the next step."""
    first = sums.one.remote()
    assert await first == 1

    assert await sums.add.remote(first, first) == 2


async def test_a_failed_input_fails_the_call_and_the_callee_never_runs(sums):
    """The error of the first step surfaces at the last one, and no step runs on missing input."""
    name = secrets.token_hex(4)
    broken = sums.note.remote(name, [sums.fails.remote()])

    with pytest.raises(ValueError, match="no number"):
        await broken
    assert name not in await sums.noted.remote()


async def test_a_failed_input_of_a_failed_input_surfaces_too(sums):
    """Long chains fail with the first cause, not with the last symptom."""
    broken = sums.add.remote(sums.add.remote(sums.fails.remote()))

    with pytest.raises(ValueError, match="no number"):
        await broken


async def test_a_response_crosses_from_one_application_to_another(sums, cluster):
    """Teams own applications; their results still feed each other without a detour over the caller."""
    other = serve.run(Adder.bind(), name="other")

    assert await sums.add.remote(other.add.remote(sums.one.remote())) == 2


async def test_a_waiting_input_keeps_neither_the_slot_nor_other_calls(sums, cluster):
    """A slow first step holds up the calls that need it, and nobody else."""
    gate = serve.run(Gate.bind(), name="gate")
    late = sums.add.remote(gate.wait.remote("input", 41), 1)

    assert await sums.add.remote(1, 1) == 2
    assert not late.done()
    await gate.open.remote("input")
    assert await late == 42


async def test_the_value_is_that_of_the_first_call_even_if_it_comes_later(sums):
    """Order of awaiting is free: the last call may be fetched first."""
    first = sums.one.remote()
    second = sums.add.remote(first, 10)

    assert await second == 11
    assert await first == 1
