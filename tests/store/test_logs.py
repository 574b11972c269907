"""The lines of replicas: kept within bounds, found by the names that people use, read in the order they came."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from qserve.errors import UsageError
from qserve.store import logs
from qserve.store.connection import endpoint_of
from qserve.store.link import Link
from qserve.store.logs import LONGEST_LINE_BYTES, Choice, LogLine, LogReader, choose
from qserve.store.state import ClusterState
from tests.store.records import REPLICA, SHOP
from tests.store.until import until

KNOWN = {"shop": {"Echo", "Search"}, "chat": {"Echo", "my-model"}}
FIRST = LogLine("shop", "Echo", "Echo-aaaa1111", 7, "host-a", "one")

# Writing


@pytest.mark.leaves(logs=1)
async def test_a_line_comes_back_as_it_was_written(state):
    """Odd bytes of user code must neither be refused nor end the reader."""
    odd = line("\x1b[31mréd\x00\ud800", of_worker=True)
    assert await logs.append(state.link, state.keys, [FIRST, odd], 1000) == []

    first, second = await LogReader(state, "shop.Echo").last(10)

    assert first == replace(FIRST, at_ms=first.at_ms)
    assert (second.text, second.of_worker) == ("\x1b[31mréd\x00?", True)
    assert first.label == "Echo#aaaa1111"


@pytest.mark.leaves(logs=1)
async def test_a_deployment_keeps_its_last_lines_for_a_day(state, server):
    """Replicas write for ever; Redis holds no more than was allowed, and nothing of what was deleted long ago."""
    for batch in range(10):
        await logs.append(state.link, state.keys, [line(f"{batch}.{n}") for n in range(100)], 200)

    name = state.keys.logs("shop", "Echo")
    assert 200 <= server.xlen(name) <= 300  # the server trims by whole blocks
    assert 0 < server.ttl(name) <= 24 * 3600


@pytest.mark.leaves(logs=1)
async def test_lines_that_the_server_refuses_are_named(state, full):
    """So that they can be counted: a gap that nobody marks is taken for silence."""
    await logs.append(state.link, state.keys, [FIRST], 1000)
    with full():
        assert await logs.append(state.link, state.keys, [FIRST, line("two")], 1000) == [0, 1]


def test_a_long_line_is_cut_and_says_so():
    """One line of megabytes would push all others out."""
    assert logs.cut("ä" * 10) == "ä" * 10
    text = logs.cut("a" + "ä" * LONGEST_LINE_BYTES)
    assert text.endswith(f"(cut, it has {2 * LONGEST_LINE_BYTES + 1} bytes)")
    assert len(text.encode()) < LONGEST_LINE_BYTES + 50


# Choosing


@pytest.mark.parametrize(
    ("target", "deployments", "replica"),
    [
        ("", {("shop", "Echo"), ("shop", "Search"), ("chat", "Echo"), ("chat", "my-model")}, ""),
        ("shop", {("shop", "Echo"), ("shop", "Search")}, ""),
        ("shop.Echo", {("shop", "Echo")}, ""),
        ("Search", {("shop", "Search")}, ""),
        ("my-model", {("chat", "my-model")}, ""),
        ("Search#ab12", {("shop", "Search")}, "Search-ab12"),
        ("Search-ab12cd34", {("shop", "Search")}, "Search-ab12cd34"),
        ("my-model#ab", {("chat", "my-model")}, "my-model-ab"),
        ("Echo#ab12", {("shop", "Echo"), ("chat", "Echo")}, "Echo-ab12"),
        ("chat.Echo#ab12", {("chat", "Echo")}, "Echo-ab12"),
    ],
)
def test_a_target_is_what_people_call_it(target, deployments, replica):
    """The mark of a line is what stands before one's eyes; it must do as a name."""
    assert choose(target, KNOWN) == Choice(frozenset(deployments), replica)


def test_a_name_that_several_have_is_refused_with_those_that_are_meant():
    """Half of the lines would be those of another application."""
    with pytest.raises(UsageError, match=r"say chat\.Echo or shop\.Echo"):
        choose("Echo", KNOWN)


# Reading


async def test_an_unknown_target_is_answered_with_what_there_is(state):
    """A typo is found at a glance."""
    await state.deploy(SHOP, {})
    with pytest.raises(UsageError, match=r"'ship'.*There are: shop: Echo\."):
        await LogReader(state, "ship").last(10)


@pytest.mark.leaves(logs=1)
async def test_an_unknown_replica_is_answered_with_those_there_are(state):
    """Also with those that have ended: their last words are what one looks for."""
    await state.deploy(SHOP, {})
    await state.record(REPLICA.model_copy(update={"replica_id": "Echo-bbbb2222"}))
    await logs.append(state.link, state.keys, [FIRST], 1000)
    with pytest.raises(UsageError, match="There are: Echo#aaaa1111, Echo#bbbb2222"):
        await LogReader(state, "Echo#cccc").last(10)

    assert await LogReader(state, "Echo#bbbb").last(10) == []  # it is there, and has written nothing


@pytest.mark.leaves(logs=1)
async def test_the_lines_of_a_deleted_deployment_are_found_by_its_whole_name(state):
    """What went wrong is often looked for afterwards."""
    await logs.append(state.link, state.keys, [FIRST], 1000)
    assert [found.text for found in await LogReader(state, "shop.Echo").last(10)] == ["one"]


@pytest.mark.leaves(logs=2)
async def test_lines_of_several_deployments_interleave_by_time(state):
    """A call runs through many replicas; what it wrote reads as one story."""
    await deploy_both(state)
    for text in ("1", "2", "3", "4"):
        deployment = "Echo" if int(text) % 2 else "Search"
        await logs.append(state.link, state.keys, [line(text, deployment=deployment)], 1000)
        await next_millisecond(state)

    found = await LogReader(state, "shop").last(3)

    assert [f"{each.deployment} {each.text}" for each in found] == ["Search 2", "Echo 3", "Search 4"]


@pytest.mark.leaves(logs=1)
async def test_the_last_lines_of_one_replica_are_found_behind_those_of_a_chatty_one(state):
    """Its neighbour's thousand lines must not hide the few that are asked for."""
    await state.deploy(SHOP, {})
    quiet = line("here", replica="Echo-bbbb2222")
    chatty = [line(str(n)) for n in range(400)]
    await logs.append(state.link, state.keys, [quiet, *chatty], 1000)

    assert [found.text for found in await LogReader(state, "Echo#bbbb").last(5)] == ["here"]


@pytest.mark.leaves(logs=1)
async def test_since_leaves_out_what_is_older(state):
    """The last five minutes are what an incident is about."""
    await state.deploy(SHOP, {})
    reader = LogReader(state, "shop")
    await logs.append(state.link, state.keys, [FIRST], 1000)
    await next_millisecond(state)
    now_ms = await reader.now_ms()
    assert await reader.last(10, now_ms) == []

    await logs.append(state.link, state.keys, [line("two")], 1000)
    assert [found.text for found in await reader.last(10, now_ms)] == ["two"]


@pytest.mark.leaves(logs=2)
async def test_following_tells_each_line_once_also_of_deployments_that_come(state, settings, ring):
    """From the last line shown on: no gap, no repetition; a deploy in the middle is part of the story."""
    await state.deploy(SHOP, {})
    await logs.append(state.link, state.keys, [FIRST], 1000)
    link = Link(endpoint_of(settings), "follows")
    reader, told = LogReader(ClusterState(link, settings.namespace, ring), "shop"), []
    told += await reader.last(10)
    following = asyncio.create_task(follow(reader, told))

    await logs.append(state.link, state.keys, [line("two")], 1000)
    await until(lambda: len(told) == 2, what="the line that came is told")
    await deploy_both(state)
    await logs.append(state.link, state.keys, [line("three"), line("four", deployment="Search")], 1000)
    await until(lambda: len(told) == 4, within_s=15, what="the new deployment is followed as well")
    following.cancel()
    await link.close()

    assert [found.text for found in told] == ["one", "two", "three", "four"]


async def test_there_is_nothing_to_follow_where_nothing_is_deployed(state):
    """It would wait for ever, in the wrong namespace."""
    reader = LogReader(state, "")
    assert await reader.last(10) == []
    with pytest.raises(UsageError, match="Nothing is deployed in namespace"):
        await anext(reader.coming())


@pytest.mark.leaves(logs=1)
async def test_an_entry_that_somebody_else_wrote_does_not_end_the_reader(state, server):
    """Anybody who reaches Redis can write there."""
    server.xadd(state.keys.logs("shop", "Echo"), {"p": "9" * 5000, b"\xff": b"\xff", "l": b"\xff"})
    (found,) = await LogReader(state, "shop.Echo").last(10)
    assert (found.pid, found.text, found.replica_id) == (0, "\ufffd", "")


def line(text: str, *, deployment: str = "Echo", replica: str = "Echo-aaaa1111", of_worker: bool = False) -> LogLine:
    """A line of application "shop"."""
    return LogLine("shop", deployment, replica, 7, "host-a", text, of_worker)


async def next_millisecond(state) -> None:
    """Wait until the server's clock, by which lines are ordered, has moved."""
    clock = LogReader(state, "")
    began_ms = await clock.now_ms()
    while await clock.now_ms() == began_ms:
        pass


async def deploy_both(state) -> None:
    """An application of two deployments."""
    search = SHOP.deployments[0].model_copy(update={"name": "Search"})
    await state.deploy(SHOP.model_copy(update={"deployments": (*SHOP.deployments, search)}), {})


async def follow(reader: LogReader, told: list[LogLine]) -> None:
    """Collect what comes."""
    async for lines in reader.coming():
        told += lines


@pytest.mark.leaves(logs=1)
async def test_an_entry_that_somebody_forged_cannot_pass_for_other_lines(state, server):
    """Whoever reaches Redis may write there: no second line in a line, no cursor moved by a name, no time past all."""
    forged = {"r": "Echo-\x1b[2Jaaaa", "h": "host\na", "l": "one\n(Echo#bbbb pid=1) two"}
    server.xadd(state.keys.logs("shop", "Echo"), forged, id="99999999999999999-0")

    (read,) = await LogReader(state, "shop.Echo").last(10)

    assert (read.replica_id, read.host) == ("Echo-?[2Jaaaa", "host?a")
    assert read.text == "one (Echo#bbbb pid=1) two"
    assert datetime.fromtimestamp(read.at_ms / 1000, UTC).year == 9999
