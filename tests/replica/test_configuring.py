"""A replica that goes by another configuration: its slots, its pauses, and when it has served long enough."""

from __future__ import annotations

import asyncio
import threading

import pytest
import redis

from qserve.replica.serve import Server
from qserve.wire.keys import GROUP
from tests.replica.room import Work, handle, spec_of
from tests.store.until import until


class Threads:
    """Counts how many threads are at work."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.now = self.most = 0
        self._lock = threading.Lock()

    def hold(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.gate.wait(10)
        with self._lock:
            self.now -= 1


@pytest.mark.parametrize("kind", [Work, Threads], ids=["coroutines", "threads"])
async def test_more_slots_take_more_calls_at_once(room, kind):
    """Also sync methods, each of which needs a thread."""
    work = kind()
    server = await room.start("Work", work, slots=2)
    calls = [handle("Work").hold.remote() for _ in range(6)]
    await until(lambda: work.now == 2)

    server.configure(spec_of("Work", slots=5))
    await until(lambda: work.now == 5)
    work.gate.set()
    await asyncio.gather(*calls)
    assert work.most == 5


@pytest.mark.parametrize("kind", [Work, Threads], ids=["coroutines", "threads"])
async def test_fewer_slots_start_nothing_until_so_many_run(room, kind):
    """A model that runs out of memory with three at a time must not get a third, whatever was allowed before."""
    work = kind()
    server = await room.start("Work", work, slots=4)
    first = [handle("Work").hold.remote() for _ in range(4)]
    await until(lambda: work.now == 4)
    server.configure(spec_of("Work", slots=1))
    later = [handle("Work").hold.remote() for _ in range(4)]

    work.gate.set()
    await asyncio.gather(*first)
    work.most = 0
    await asyncio.gather(*later)
    assert work.most <= 1


async def test_what_was_claimed_for_slots_that_are_gone_goes_back_uncharged(room):
    """The replica asked for two more while it had them: the answer may come after the change."""
    work, other = Work(), Work()
    server = await room.start("Work", work, slots=4)
    server.configure(spec_of("Work", slots=1))
    calls = [handle("Work").hold.remote() for _ in range(4)]
    await until(lambda: work.now == 1)
    other.gate.set()
    await room.start("Work", other, slots=4, number=2)
    await until(lambda: sum(call.done() for call in calls) == 3)
    work.gate.set()
    await asyncio.gather(*calls)

    assert work.most == 1
    assert work.attempts == other.attempts == {1}


async def test_a_paused_replica_takes_nothing_and_loses_nothing(room, server):
    """What it is given in the moment of the pause goes back to the front of the queue, uncharged."""
    work = Work()
    work.gate.set()
    replica = await room.start("Work", work, slots=4)
    await until(lambda: any(row["name"].endswith("Work-1-take") and "b" in row["flags"] for row in clients(server)))
    replica.configure(spec_of("Work", slots=4, paused=True))
    calls = [handle("Work").hold.remote() for _ in range(10)]
    await until(lambda: server.xlen(replica.keys.front) and server.xlen(replica.keys.calls))
    await until(lambda: not held(server, replica))
    assert work.most == 0

    replica.configure(spec_of("Work", slots=4))
    await asyncio.gather(*calls)
    assert work.attempts == {1}


async def test_a_replica_that_starts_paused_leaves_all_calls_to_others(room):
    """A deployment that is paused stays so on a host that joins later."""
    work, other = Work(), Work()
    work.gate.set()
    other.gate.set()
    await room.start("Work", work, slots=4, paused=True)
    await room.start("Work", other, slots=4, number=2)
    await asyncio.gather(*(handle("Work").hold.remote() for _ in range(50)))

    assert (work.most, other.attempts) == (0, {1})


async def test_calls_that_wait_for_inputs_go_back_when_it_is_paused(room):
    """They were given to it, and it will not start them."""
    work, other, source = Work(), Work(), Work()
    other.gate.set()
    server = await room.start("Work", work, slots=4)
    await room.start("Source", source, slots=1)
    late = handle("Source").hold.remote()
    calls = [handle("Work").hold.remote(late) for _ in range(5)]
    await until(lambda: len(server._parked) == 5)

    server.configure(spec_of("Work", slots=4, paused=True))
    await room.start("Work", other, slots=4, number=2)
    source.gate.set()
    await asyncio.gather(*calls)
    assert (work.most, other.attempts) == (0, {1})


async def test_a_replica_that_has_answered_enough_says_so_once(room):
    """It goes on until its replacement runs; saying it with each call would be a storm."""
    work = Work()
    work.gate.set()
    await room.start("Work", work, slots=3, max_calls_per_replica=10)
    await asyncio.gather(*(handle("Work").hold.remote() for _ in range(9)))
    assert room.retiring == []

    await asyncio.gather(*(handle("Work").hold.remote() for _ in range(20)))
    assert room.retiring == ["it has answered 10 calls (max_calls_per_replica=10)"]


async def test_a_lower_limit_of_calls_counts_those_before(room):
    """It is set to get rid of replicas that are old already."""
    work = Work()
    work.gate.set()
    server = await room.start("Work", work, slots=3)
    await asyncio.gather(*(handle("Work").hold.remote() for _ in range(5)))

    server.configure(spec_of("Work", slots=3, max_calls_per_replica=3))
    server.configure(spec_of("Work", slots=3, max_calls_per_replica=2))
    assert room.retiring == ["it has answered 5 calls (max_calls_per_replica=3)"]


def clients(server: redis.Redis) -> list[dict[str, str]]:
    """All connections."""
    rows: list[dict[str, str]] = server.client_list()
    return rows


def held(server: redis.Redis, replica: Server) -> int:
    """How many calls the group's replicas hold."""
    streams = (replica.keys.front, replica.keys.calls)
    return sum(server.xpending(stream, GROUP)["pending"] for stream in streams)
