"""Processes die, connections break, Redis forgets: every call is answered, once. A ledger tells what really ran."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest

import qserve as serve
from qserve.errors import ReplicaDiedError
from qserve.wire.keys import ClusterKeys, deployment_keys
from tests.acceptance.ledger import Clerk, Ledger
from tests.fundamentals.apps import Gate
from tests.support.cluster import eventually, is_replica


@serve.deployment
class Poisoned:
    """One kind of input takes its process down, each time."""

    def __call__(self, *, poison: bool) -> str:
        if poison:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.abort()
        return "well"


@pytest.fixture
def ledger(tmp_path):
    """An empty ledger."""
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def keys(settings):
    """The keys of the clerk's queue."""
    return deployment_keys(settings.namespace, "default", "Clerk")


def clerks(ledger: Ledger, number: int):
    """That many replicas of the clerk."""
    return serve.run(Clerk.options(num_replicas=number).bind(str(ledger.path)))


def replicas_of(worker) -> list[psutil.Process]:
    """The replica processes of one worker."""
    return [child for child in psutil.Process(worker.pid).children() if is_replica(child)]


def has_ended(ledger: Ledger, count: int) -> bool:
    """Whether more calls than that have ended."""
    return len(ledger.lines("end")) > count


def queue_is_empty(server, keys) -> bool:
    """Whether every call has left the queue."""
    return bool(server.xlen(keys.calls) + server.xlen(keys.front) == 0)


def test_a_call_outlives_the_replica_that_ran_it(cluster, ledger):
    """kill -9 in mid-call: its worker hands the calls on in the same moment, and nobody else's call is touched."""
    handle = clerks(ledger, 2)
    responses = [handle.work.remote(ticket, held=True) for ticket in range(6)]
    eventually(lambda: len(ledger.lines("start")) == 6)
    victim = ledger.pids()[0]
    lost = {ticket for ticket, pid in ledger.lines("start") if pid == victim}

    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    ledger.release()
    assert serve.get(responses, timeout_s=10) == list(range(6))
    assert time.monotonic() - killed_at < 2
    assert {ticket for ticket, times in ledger.starts().items() if times == 2} == lost
    assert max(ledger.starts().values()) == 2
    assert set(ledger.ends().values()) == {1}


def test_killing_replicas_again_and_again_under_load_loses_nothing(cluster, ledger, server, keys):
    """What a bad night looks like: every call is answered with its own result."""
    handle = clerks(ledger, 2)

    async def load():
        return await asyncio.gather(*(handle.work.remote(ticket, seconds=0.02) for ticket in range(400)))

    with ThreadPoolExecutor() as pool:
        answers = pool.submit(asyncio.run, load())
        for count in (20, 120, 220):
            eventually(partial(has_ended, ledger, count))
            os.kill(cluster.replica_pids()[0], signal.SIGKILL)
        assert answers.result(timeout=30) == list(range(400))
    again = sum(times - 1 for times in ledger.starts().values())
    assert again <= 3 * 4, "only what ran in a killed replica's four slots is run again"
    assert queue_is_empty(server, keys)


def test_a_call_that_kills_every_replica_becomes_a_dead_letter(cluster, settings, server):
    """A poison call must not take the service down for ever: after three attempts it is set aside."""
    handle = serve.run(Poisoned.options(num_replicas=2).bind())
    poisoned = handle.remote(poison=True)

    with pytest.raises(
        ReplicaDiedError, match=r"'Poisoned.__call__' was given up after 3 attempts.*SIGABRT.*dead letter"
    ):
        poisoned.result(timeout_s=20)
    assert poisoned.status() == "DEAD"
    assert handle.remote(poison=False).result(timeout_s=10) == "well"
    [(_, letter)] = server.xrange(deployment_keys(settings.namespace, "default", "Poisoned").dead)
    assert letter[b"attempts"] == b"3"
    assert letter[b"call"].decode() == poisoned.call_id.hex()


def test_without_retries_the_caller_hears_of_the_first_death(cluster):
    """`max_retries=0` is for work that must not run twice; it behaves as Ray Serve does."""
    handle = serve.run(Poisoned.options(max_retries=0).bind())
    began = time.monotonic()

    with pytest.raises(ReplicaDiedError, match="after 1 attempts"):
        handle.remote(poison=True).result(timeout_s=10)
    assert time.monotonic() - began < 2
    assert handle.remote(poison=False).result(timeout_s=10) == "well"


def test_term_of_a_worker_under_load_drains_it(cluster, ledger, server, keys):
    """A rolling restart of hosts: what has begun is finished, the rest goes elsewhere; nothing is lost or repeated."""
    leaving = cluster.workers[0]
    cluster.start_worker()
    eventually(lambda: len(serve.status().nodes) == 2)
    handle = clerks(ledger, 2)
    stop = threading.Event()

    async def load():
        answers: list[int] = []
        while not stop.is_set():
            first = len(answers)
            answers += await asyncio.gather(*(handle.work.remote(first + n, seconds=0.02) for n in range(20)))
        return answers

    with ThreadPoolExecutor() as pool:
        answering = pool.submit(asyncio.run, load())
        eventually(lambda: len(ledger.pids()) == 2)
        leaving.terminate()
        assert leaving.wait(15) == 0
        done = len(ledger.lines("end"))
        eventually(lambda: len(ledger.lines("end")) > done + 100)
        stop.set()
        answers = answering.result(timeout=15)
    assert answers == list(range(len(answers)))
    assert set(ledger.starts().values()) == {1}
    eventually(lambda: queue_is_empty(server, keys))


def test_a_drain_hands_on_at_once_what_has_not_begun(cluster, ledger):
    """A replica that finishes a long call must not sit on others that were given to it at the last moment."""
    leaving = cluster.workers[0]
    handle = clerks(ledger, 1)
    long_one = handle.work.remote(0, held=True)
    eventually(lambda: len(ledger.lines("start")) == 1)
    cluster.start_worker()
    eventually(lambda: len(serve.status().nodes) == 2)

    leaving.terminate()
    short_ones = [handle.work.remote(ticket) for ticket in range(1, 20)]
    assert serve.get(short_ones, timeout_s=10) == list(range(1, 20))
    ledger.release()
    assert long_one.result(timeout_s=5) == 0
    assert set(ledger.starts().values()) == {1}
    assert leaving.wait(15) == 0


def test_a_drain_does_not_wait_for_the_inputs_of_calls(cluster, ledger):
    """A call that waits for another's result has not begun: it waits elsewhere, and the host may leave."""
    leaving = cluster.workers[0]
    handle = clerks(ledger, 1)
    gate = serve.run(Gate.bind(), name="gate")
    waiting = handle.work.remote(gate.wait.remote("input", 7))
    eventually(lambda: gate.waiting.remote("input").result(timeout_s=5) == 1)
    eventually(lambda: waiting.status() == "RUNNING", what="a replica has taken it")
    cluster.start_worker()
    eventually(lambda: len(serve.status().nodes) == 2)

    leaving.terminate()
    assert leaving.wait(5) == 0
    assert ledger.starts() == {}
    gate.open.remote("input")
    assert waiting.result(timeout_s=10) == 7


def test_a_worker_that_is_killed_is_replaced_within_ten_seconds(cluster, ledger):
    """A host burns down: its lease runs out, its calls and its replicas move to another."""
    burning = cluster.workers[0]
    handle = clerks(ledger, 1)
    response = handle.work.remote(1, held=True)
    eventually(lambda: len(ledger.lines("start")) == 1)
    [replica] = replicas_of(burning)
    cluster.start_worker()
    eventually(lambda: len(serve.status().nodes) == 2)

    killed_at = time.monotonic()
    cluster.kill(burning)
    ledger.release()
    assert response.result(timeout_s=15) == 1
    assert time.monotonic() - killed_at < 10
    assert not replica.is_running() or replica.status() == psutil.STATUS_ZOMBIE, "no orphan runs on"


def test_a_standby_autoscaler_takes_over(cluster, ledger, server, settings):
    """The leader is killed: calls flow as if nothing were, and deploys work again within two leases."""
    cluster.start_autoscaler()
    handle = clerks(ledger, 1)
    holder = server.get(ClusterKeys(settings.namespace).leader).decode()
    [leader] = [process for process in cluster.autoscalers if f"-{process.pid}-" in holder]

    killed_at = time.monotonic()
    cluster.kill(leader)
    while server.get(ClusterKeys(settings.namespace).leader) in (None, holder.encode()):
        assert handle.work.remote(1).result(timeout_s=2) == 1
        assert time.monotonic() - killed_at < 12
    assert serve.run(Poisoned.bind(), name="after").remote(poison=False).result(timeout_s=5) == "well"
    assert cluster.replica_pids(), "the replicas of the old reign are kept"
    assert set(ledger.pids()) <= set(cluster.replica_pids())


def test_all_connections_cut_in_mid_load_lose_nothing(cluster, ledger, server, keys):
    """A proxy restarts, a firewall forgets: everybody comes back by himself, and no call runs twice or is forgotten."""
    handle = clerks(ledger, 2)

    async def load():
        return await asyncio.gather(*(handle.work.remote(ticket, seconds=0.01) for ticket in range(600)))

    with ThreadPoolExecutor() as pool:
        answers = pool.submit(asyncio.run, load())
        for count in (10, 150, 300, 450):
            eventually(partial(has_ended, ledger, count))
            for kind in ("normal", "pubsub"):
                server.client_kill_filter(_type=kind, skipme=True)
        assert answers.result(timeout=20) == list(range(600))
    assert set(ledger.starts().values()) == {1}
    assert queue_is_empty(server, keys)


def test_scripts_that_redis_forgot_are_sent_again(cluster, ledger, server):
    """SCRIPT FLUSH, a failover, a restart: NOSCRIPT is an answer that mends itself."""
    handle = clerks(ledger, 1)
    for ticket in range(20):
        server.script_flush()
        assert handle.work.remote(ticket).result(timeout_s=5) == ticket
    assert set(ledger.starts().values()) == {1}


def test_a_consumer_group_that_was_destroyed_is_made_again(cluster, ledger, server, keys):
    """Somebody tidied Redis by hand, with calls waiting and calls running: all of them are answered."""
    handle = clerks(ledger, 1)
    responses = [handle.work.remote(ticket, held=True) for ticket in range(8)]
    eventually(lambda: len(ledger.lines("start")) == 4)

    for stream in (keys.front, keys.calls):
        server.xgroup_destroy(stream, "replicas")
    ledger.release()
    assert serve.get(responses, timeout_s=15) == list(range(8))
    assert max(ledger.starts().values()) <= 2
    assert handle.work.remote(99).result(timeout_s=5) == 99
    eventually(lambda: queue_is_empty(server, keys))


def test_a_replica_that_was_paused_does_not_answer_a_second_time(cluster, ledger, server, keys):
    """A host freezes, its calls run elsewhere, it thaws and finishes them too: its late answers are refused."""
    frozen = cluster.workers[0]
    handle = clerks(ledger, 1)
    response = handle.work.remote(1, held=True)
    eventually(lambda: len(ledger.lines("start")) == 1)
    heard: list[object] = []
    response.add_done_callback(heard.append)
    cluster.start_worker()
    eventually(lambda: len(serve.status().nodes) == 2)

    stopped = [*replicas_of(frozen), psutil.Process(frozen.pid)]
    for process in stopped:
        process.suspend()
    eventually(lambda: ledger.starts()[1] == 2, what="the call runs on the other worker")
    ledger.release()
    assert response.result(timeout_s=5) == 1
    assert serve.get_response(response.request_id).result(timeout_s=5) == 1
    record = server.get(keys.record(response.call_id))

    for process in reversed(stopped):
        process.resume()
    eventually(lambda: ledger.ends()[1] == 2, what="the paused replica finishes")
    eventually(lambda: len(serve.status().nodes) == 2, what="the thawed worker joins again")
    assert handle.work.remote(2).result(timeout_s=5) == 2
    assert server.get(keys.record(response.call_id)) == record
    assert heard == [response]
