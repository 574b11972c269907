"""Calls from the jobs of an arq worker that was there before: nothing is needed but a handle."""

from __future__ import annotations

import secrets
import subprocess
import sys

import pytest

pytest.importorskip("arq", reason="the extra [scheduler] is not installed")

from arq import create_pool
from arq.connections import RedisSettings

from qserve.store import calls
from qserve.store.calls import Entry, Finished
from qserve.wire import codec
from qserve.wire.messages import Serializer, open_call, seal_reply
from qserve.wire.signing import Direction
from tests.scheduler.conftest import arguments_of
from tests.support.cluster import ROOT


@pytest.fixture
def arq_queue(settings):
    """A real `arq` worker process on the same Redis, with its own queue."""
    name = f"arq-{secrets.token_hex(4)}"
    env = settings.child_env() | {"PYTHONPATH": str(ROOT), "ARQ_URL": settings.redis_url}
    code = (
        "from arq import run_worker; from tests.scheduler.arq_jobs import WorkerSettings; "
        f"run_worker(WorkerSettings, queue_name={name!r})"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)
    yield name
    process.terminate()
    process.wait(15)


async def test_a_job_of_arq_awaits_a_call(settings, desk, arq_queue, schedulers, server):
    """The way from arq to replicas that scale: jobs stay, and only their heavy part moves."""
    schedulers.start()
    pool = await create_pool(RedisSettings.from_dsn(settings.redis_url), default_queue_name=arq_queue)
    job = await pool.enqueue_job("ask", 21)
    assert job is not None

    double = await answer(desk, lambda arguments: arguments[0] * 2)
    later = await answer(desk, lambda arguments: None)

    assert (double, later) == ("double", "later")
    assert await job.result(timeout=10, poll_delay=0.05) == ["answered", 42]
    await pool.aclose()
    for key in server.keys(f"arq:*{job.job_id}"):
        server.delete(key)


async def answer(desk, work) -> str:
    """Take the next call and answer it, as a replica does. Returns its method."""
    entries: list[Entry] = []
    while not entries:
        entries = await calls.claim(await desk.link.ready(), desk.keys, "r1", 1, 5000)
    call = open_call(entries[0].envelope, desk.ring.signer(Direction.CALL, desk.keys.scope))
    args, _ = arguments_of(call)
    reply = codec.encode_result(call.call_id, work(args), Serializer.PICKLE)
    sealed = seal_reply(reply, desk.ring.signer(Direction.REPLY, desk.keys.scope))
    assert await calls.finish_one(desk.link, desk.keys, Finished(entries[0], call.call_id, call.inbox, sealed))
    return call.method
