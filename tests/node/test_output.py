"""What replicas write goes to the worker's stdout and to Redis. Neither may ever hold the worker up."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

import qserve as serve
from qserve.config import LEASE_S, Settings
from qserve.node.output import BoundedWriter, Output
from qserve.spec import Assignment, ExitCause, ReplicaRecord, ReplicaState
from qserve.store.connection import endpoint_of
from qserve.store.embedded import EmbeddedBroker, private_folder
from qserve.store.link import Link
from qserve.store.logs import LONGEST_LINE_BYTES, LogLine, LogReader
from qserve.store.state import ClusterState
from qserve.wire.signing import KeyRing
from tests.store.until import until
from tests.support.cluster import ROOT, Cluster, eventually


class Pipe:
    """A pipe whose reader has to be asked to read."""

    def __init__(self) -> None:
        self.reads, self.writes = os.pipe()

    def read(self) -> bytes:
        """What is there, once something is."""
        return os.read(self.reads, 1 << 20)

    def close(self) -> None:
        """Both ends."""
        for end in (self.reads, self.writes):
            os.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe with room for 64 KiB, that nobody reads."""
    made = Pipe()
    yield made
    made.close()


@pytest.fixture
async def state(settings: Settings) -> AsyncIterator[ClusterState]:
    """The namespace's state."""
    link = Link(endpoint_of(settings), "test")
    await link.ready()
    yield ClusterState(link, settings.namespace, KeyRing(settings.secrets))
    await link.close()


@pytest.fixture
def output(state: ClusterState, pipe: Pipe) -> Output:
    """The output of a worker's replicas; nobody reads its stdout."""
    return Output(state, "host-a", keep=1000, stdout=BoundedWriter(pipe.writes))


ECHO = Assignment(replica_id="Echo-aaaa1111", node_id="n1", app="shop", deployment="Echo", version="1")
OTHER = ECHO.model_copy(update={"replica_id": "Echo-bbbb2222"})
RECORD = ReplicaRecord(**ECHO.model_dump(), state=ReplicaState.RUNNING, pid=7)

# Standard output


def test_what_is_written_comes_out_in_order(pipe):
    """It is the worker's log."""
    writer = BoundedWriter(pipe.writes)
    for number in range(3):
        writer.write(f"{number}\n")
    assert writer.settle(5.0)
    assert pipe.read() == b"0\n1\n2\n"


def test_a_reader_that_stops_holds_nobody_up_and_learns_what_it_has_missed(pipe):
    """A terminal that is paused, a log shipper that hangs: writing blocked the worker's event loop, and its leases."""
    writer = BoundedWriter(pipe.writes, most_bytes=100_000)
    for number in range(20_000):
        writer.write(f"line {number:>20}\n")
    assert not writer.settle(0.0)

    seen = ""
    while accounted(seen) < 20_000:
        seen += pipe.read().decode()

    shown = [int(text.removeprefix("line ")) for text in seen.splitlines() if text.startswith("line ")]
    assert shown == sorted(set(shown))
    assert len(shown) < 10_000  # what the pipe and the writer hold
    writer.write("and on\n")
    assert writer.settle(5.0)
    assert pipe.read() == b"and on\n"


def accounted(seen: str) -> int:
    """How many lines stand there, or are said to be missing."""
    whole = seen.splitlines()[: seen.count("\n")]
    return sum(1 if text.startswith("line ") else int(text.removeprefix("(qserve: ").split()[0]) for text in whole)


def test_a_reader_that_has_gone_is_no_error():
    """`qserve worker | head`: the worker works on."""
    reads, writes = os.pipe()
    os.close(reads)
    writer = BoundedWriter(writes)
    writer.write("nobody reads this\n")
    assert writer.settle(5.0)
    assert writer.write("nor this\n") == 9
    os.close(writes)


# Redis


async def test_lines_and_what_the_worker_says_are_kept_in_their_order(output, state):
    """Whoever looks for a cause reads both, one after the other."""
    output.tell(RECORD.model_copy(update={"state": ReplicaState.STARTING}))
    output.line(ECHO, 7, "loading")
    output.line(OTHER, 8, "loading, too")
    output.tell(RECORD)

    found = await stored(state, 4)

    assert [(line.label, line.text) for line in found] == [
        ("Echo#aaaa1111", "Process 7 is started."),
        ("Echo#aaaa1111", "loading"),
        ("Echo#bbbb2222", "loading, too"),
        ("Echo#aaaa1111", "It takes calls."),
    ]
    assert [line.of_worker for line in found] == [True, False, False, True]
    assert {(line.app, line.deployment, line.host) for line in found} == {("shop", "Echo", "host-a")}


async def test_nothing_is_left_running_once_all_is_kept(output, state):
    """Idle costs nothing."""
    output.line(ECHO, 7, "one")
    await stored(state, 1)
    await until(output._task.done, what="the task has ended")
    assert output._pending == {}


async def test_a_chatty_replica_loses_lines_and_its_neighbour_none(output, state):
    """A loop that prints must neither flood Redis nor push out what others say. How much is missing is told."""
    output.line(OTHER, 8, "before")
    for number in range(5000):
        output.line(ECHO, 7, str(number))
    output.line(OTHER, 8, "after")

    found = await stored(state, 203)

    assert [line.text for line in found if line.replica_id == OTHER.replica_id] == ["before", "after"]
    gap, *kept = [line for line in found if line.replica_id == ECHO.replica_id]
    assert gap.of_worker
    assert gap.text.startswith("(4800 lines are missing here")
    assert [line.text for line in kept] == [str(number) for number in range(4800, 5000)]  # the newest


async def test_a_batch_is_bounded_in_bytes_too(output, state):
    """Lines may be long. Single ones are cut."""
    for _ in range(300):
        output.line(ECHO, 7, "x" * 100_000)
    gap, *kept = await stored(state, 60)
    assert gap.text.startswith(f"({300 - len(kept)} lines are missing here")
    assert all(len(line.text) < LONGEST_LINE_BYTES + 50 for line in kept)
    assert sum(len(line.text) for line in kept) <= 512 * 1024


async def test_nothing_is_kept_where_nothing_is_wanted(state, pipe, server):
    """`--log-lines 0`: no line leaves the host."""
    output = Output(state, "host-a", keep=0, stdout=BoundedWriter(pipe.writes))
    output.line(ECHO, 7, "secret")
    output.tell(RECORD)
    await output.close()
    assert not server.exists(state.keys.logs("shop", "Echo"))
    assert pipe.read() == b"(Echo#aaaa1111 pid=7) secret\n"


async def test_while_redis_is_away_the_newest_lines_wait_within_bounds(pipe):
    """A replica that writes through an outage costs the worker no more than a batch, and what is missing is counted."""
    broker = EmbeddedBroker(Settings(), private_folder(), keep=False)
    settings = Settings(redis_url=broker.url)
    state = ClusterState(Link(endpoint_of(settings), "test"), settings.namespace, KeyRing(()))
    output = Output(state, "host-a", keep=1000, stdout=BoundedWriter(pipe.writes))
    for number in range(5000):
        output.line(ECHO, 7, str(number))
    assert len(output._pending[ECHO.replica_id].entries) == 400
    broker.start()
    try:
        found = await stored(state, 401)
        assert found[0].text.startswith("(4600 lines are missing here")
        assert found[-1].text == "4999"
    finally:
        await output.close()
        await state.link.close()
        broker.stop()


async def test_what_redis_refuses_is_told_with_the_next_lines(output, state, server):
    """A server without memory takes nothing; the gap must be seen afterwards."""
    server.config_set("maxmemory", 1)
    try:
        output.line(ECHO, 7, "refused")
        await until(lambda: output._lost.total() == 1, what="it was refused")
    finally:
        server.config_set("maxmemory", 0)
    output.line(ECHO, 7, "taken")

    gap, taken = await stored(state, 2)

    assert gap.text.startswith("(1 lines are missing here")
    assert taken.text == "taken"


async def test_the_last_lines_are_kept_when_the_worker_leaves(output, state):
    """They say how it went."""
    output.line(ECHO, 7, "goodbye")
    await output.close()
    assert [line.text for line in await LogReader(state, "shop.Echo").last(10)] == ["goodbye"]


@pytest.mark.parametrize(
    ("changes", "has_ended", "told"),
    [
        ({"state": ReplicaState.UPDATING}, False, ["It is being reconfigured."]),
        ({"retiring": "it took 5 calls"}, False, ["It is to be replaced: it took 5 calls"]),
        ({"state": ReplicaState.STOPPING}, False, ["It is stopped: it is not wanted here any more."]),
        ({"state": ReplicaState.STOPPING, "message": "sick"}, False, ["It is stopped: sick"]),
        (
            {"state": ReplicaState.FAILED, "cause": ExitCause.START, "message": "Traceback:\n  line 1\nOops"},
            False,
            ["It did not start: Traceback:", "  line 1", "Oops"],
        ),
        ({"state": ReplicaState.FAILED, "cause": ExitCause.START, "message": "Oops"}, True, ["Process 7 has ended."]),
        (
            {"state": ReplicaState.DIED, "message": "It ended by SIGSEGV. Its last output:\nthis\nand that"},
            True,
            ["It ended by SIGSEGV."],
        ),
    ],
)
async def test_the_worker_says_what_becomes_of_a_replica(output, state, changes, has_ended, told):
    """A start's traceback is looked for here, when the deploy was made elsewhere. What a replica wrote is there."""
    output.tell(RECORD.model_copy(update=changes), has_ended=has_ended)
    assert [line.text for line in await stored(state, len(told))] == told


# A worker


@serve.deployment
class Chatty:
    def __call__(self, lines: int) -> int:
        for number in range(lines):
            sys.stdout.write(f"{number:>100}\n")
        return lines


def test_a_worker_whose_output_nobody_reads_works_on(settings):
    """Its event loop was blocked by the full pipe: leases lapsed, its replicas were given away, calls ran twice."""
    cluster = Cluster(settings)
    cluster.start_autoscaler()
    env = settings.child_env() | {"PYTHONPATH": str(ROOT), "QSERVE_LOG_LEVEL": "DEBUG"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "qserve.node"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    cluster.workers.append(worker)
    try:
        handle = serve.run(Chatty.bind())
        (node,) = serve.status().nodes
        assert handle.remote(50_000).result(timeout_s=30) == 50_000  # 6 MB into a pipe of 64 KiB

        lease = f"qserve:1:{{{settings.namespace}}}:node-lease:{node.node_id}"
        renewed = renewals(settings, lease)
        eventually(lambda: next(renewed) >= 2, within_s=LEASE_S, what="the lease is renewed on and on")
        assert handle.remote(1).result(timeout_s=10) == 1
        assert serve.status().nodes == (node,)
    finally:
        cluster.stop()
        assert worker.stdout is not None
        worker.stdout.close()
    assert worker.returncode == 0


def renewals(settings: Settings, lease: str) -> Iterator[int]:
    """How often a lease's time to live has gone up, each time that it is asked."""
    count, before = 0, -1
    with redis.Redis.from_url(settings.redis_url or "") as server:
        while True:
            left_ms = server.pttl(lease)
            count += int(left_ms > before > 0)
            before = left_ms
            yield count


async def stored(state: ClusterState, count: int) -> list[LogLine]:
    """The lines that stand in Redis, once there are so many."""
    reader = LogReader(state, "shop.Echo")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 8.0
    while True:
        await state.link.ready()
        if await state.link.call("EXISTS", state.keys.logs("shop", "Echo")):
            found = await reader.last(2000)
            if len(found) >= count or loop.time() > deadline:
                return found
        assert loop.time() < deadline, "no line came"
        await asyncio.sleep(0.01)
