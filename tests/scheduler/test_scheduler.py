"""`qserve scheduler` as processes: each run of a recurring call is made once, whoever dies; delayed calls are released.

The test plays the deployment's replicas. Crons here have seconds, so that nobody waits for a minute.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from datetime import UTC, datetime

import pytest

pytest.importorskip("arq", reason="the extra [scheduler] is not installed")

import qserve as serve
from qserve.store import calls
from tests.scheduler.conftest import Desk, Schedulers, arguments_of, due_of
from tests.support.cluster import eventually

EVERY_SECOND = "* * * * * *"


def once_a_day(moment_s: float) -> str:
    """An expression that is due at that second of each day."""
    moment = datetime.fromtimestamp(moment_s, UTC)
    return f"{moment.second} {moment.minute} {moment.hour} * * *"


async def cron(expression: str, handle, *args, since_s: float = 0.0, desk: Desk, **options):
    """Register a recurring call, as if it had been done a while ago."""
    made = await asyncio.to_thread(serve.cron, expression, handle, *args, **options)
    record = await desk.crons.get(made.name)
    assert record is not None
    if since_s:
        await desk.crons.remove(made.name)
        await desk.crons.register(record.model_copy(update={"since_s": since_s}))
    return made


async def test_of_several_schedulers_one_makes_each_run(schedulers, desk, echo):
    """They are there for safety: three of them must not send three mails. And no second is left out."""
    for _ in range(3):
        schedulers.start()
    await cron(EVERY_SECOND, echo.tidy, 1, "two", key=[3], desk=desk, name="tidy")

    made = [await desk.next() for _ in range(5)]

    dues = [due_of(call) for call in made]
    assert dues == [dues[0] + number for number in range(5)]
    assert {call.method for call in made} == {"tidy"}
    assert arguments_of(made[0]) == ((1, "two"), {"key": [3]})


async def test_a_scheduler_that_is_killed_leaves_no_gap_and_repeats_nothing(schedulers, desk, echo):
    """kill -9 at night: the other one goes on with the next run."""
    first, second = schedulers.start(), schedulers.start()
    await cron(EVERY_SECOND, echo, desk=desk)
    made = [await desk.next(), await desk.next()]

    schedulers.kill(first)
    made += [await desk.next(), await desk.next()]
    schedulers.start()
    made += [await desk.next()]
    schedulers.kill(second)
    made += [await desk.next(), await desk.next()]

    dues = [due_of(call) for call in made]
    assert dues == [dues[0] + number for number in range(7)]


async def test_a_run_that_was_missed_is_made_if_it_is_not_too_late(schedulers, desk, echo):
    """No scheduler ran for a while, as in an update: 20 s late is in time, 20 s with a grace of 5 s is not."""
    moment_s = int(time.time()) - 20
    await cron(once_a_day(moment_s), echo, "late", desk=desk, since_s=moment_s - 60, name="late")
    await cron(
        once_a_day(moment_s), echo, "left out", desk=desk, since_s=moment_s - 60, name="left-out", misfire_grace_s=5
    )

    schedulers.start()

    call = await desk.next()
    assert arguments_of(call) == (("late",), {})
    assert due_of(call) == moment_s
    assert await desk.comes_nothing(1.0)


async def test_a_run_that_was_made_is_not_made_again_by_a_restart(schedulers, desk, echo, settings, server):
    """It is still in its time of grace when another scheduler starts and looks at what may have been missed."""
    moment_s = int(time.time()) - 2
    await cron(once_a_day(moment_s), echo, desk=desk, since_s=moment_s - 60)
    schedulers.kill(schedulers.start())
    schedulers.start()
    await desk.next()
    for name in server.keys(f"arq:result:*{settings.namespace}*"):
        server.delete(name)  # arq forgets it after a while

    schedulers.start()
    await cron(EVERY_SECOND, echo.tick, desk=desk)

    assert {(await desk.next()).method for _ in range(3)} == {"tick"}


async def test_a_removed_one_is_not_made_and_leaves_nothing_in_redis(schedulers, desk, echo, settings, server):
    """Nor does one that was replaced: its next run may be a year away, and its job would lie there for so long."""
    schedulers.start()
    await cron("0 0 1 1 *", echo, 1, desk=desk, name="yearly")
    eventually(lambda: len(jobs(server, settings)) == 1)
    replaced = jobs(server, settings)
    await cron("0 0 2 1 *", echo, 2, desk=desk, name="yearly")
    eventually(lambda: len(jobs(server, settings)) == 1 and jobs(server, settings) != replaced)

    await asyncio.to_thread(serve.uncron, "yearly")

    eventually(lambda: jobs(server, settings) == [])
    assert not server.zcard(queue_of(settings))


async def test_a_replaced_one_is_made_with_its_new_arguments(schedulers, desk, echo):
    """A deploy registers it anew: no run is left out in between, and none is made twice."""
    schedulers.start()
    await cron(EVERY_SECOND, echo, "old", desk=desk, name="tidy")
    made = [await desk.next(), await desk.next()]
    await cron(EVERY_SECOND, echo, "new", desk=desk, name="tidy")
    while arguments_of(made[-1]) != (("new",), {}):
        made.append(await desk.next())

    dues = [due_of(call) for call in made]
    assert dues == [dues[0] + number for number in range(len(dues))]


async def test_a_forged_job_runs_nothing_and_holds_nobody_up(schedulers, desk, echo, settings, server, tmp_path):
    """arq's own jobs are pickles, which run code where they are opened: whoever could write to Redis could run it."""
    trap = tmp_path / "trapped"
    forgeries = {"pickle": pickle.dumps(Trap(str(trap))), "json": b'{"t":1,"f":"fire","a":[],"k":{},"et":1}'}
    schedulers.start()
    await cron(EVERY_SECOND, echo, desk=desk)
    await desk.next()

    for name, forged in forgeries.items():
        server.set(f"arq:job:{name}", forged)
        server.zadd(queue_of(settings), {name: 1})
    eventually(
        lambda: not server.zscore(queue_of(settings), "pickle") and not server.zscore(queue_of(settings), "json")
    )

    await desk.next()
    assert not trap.exists()


async def test_a_job_whose_name_is_no_text_ends_no_scheduler(schedulers, desk, echo, settings, server):
    """Whoever reaches Redis may write one: arq dies of it, and a supervisor would start schedulers in vain for ever."""
    running = schedulers.start()
    await cron(EVERY_SECOND, echo, desk=desk)
    await desk.next()

    server.zadd(queue_of(settings), {b"\xff\xfe": 1})
    eventually(lambda: not server.zscore(queue_of(settings), b"\xff\xfe"))
    await desk.next()
    await desk.next()

    assert running.poll() is None


async def test_a_recurring_call_goes_on_after_its_next_job_was_forged(schedulers, desk, echo, settings, server):
    """A job is made by the one before it: one that nobody may trust must not be the last."""
    schedulers.start()
    await cron(EVERY_SECOND, echo, desk=desk)
    await desk.next()

    eventually(lambda: forge(server, settings))
    eventually(lambda: "deserializing job" in schedulers.said())
    for _ in range(3):
        await desk.next()


async def test_a_run_that_is_refused_is_made_when_the_deployment_is_back(schedulers, desk, echo):
    """A deployment that is replaced in that very moment is no reason to leave the nightly run out."""
    await calls.retire(desk.link, desk.keys)
    moment_s = int(time.time()) - 2
    await cron(once_a_day(moment_s), echo, desk=desk, since_s=moment_s - 60)
    schedulers.start()
    eventually(lambda: "has to wait" in schedulers.said())

    await calls.open_queue(await desk.link.ready(), desk.keys)

    assert due_of(await desk.next()) == moment_s


async def test_a_scheduler_releases_delayed_calls(schedulers, desk, echo):
    """Where workers host a fixed number of replicas by themselves, no autoscaler runs: this does it."""
    schedulers.start()
    response = echo.options(delay_s=0.5).remote("later")

    assert arguments_of(await desk.next()) == (("later",), {})
    assert not response.done()


async def test_redis_restarts_and_all_goes_on(restartable, on_restartable, echo, tmp_path):
    """Recurring calls go on, and what was delayed before is made after: both are kept, and nobody is restarted."""
    schedulers = Schedulers(on_restartable, tmp_path)
    desk = Desk(on_restartable)
    await desk.open()
    try:
        schedulers.start()
        await cron(EVERY_SECOND, echo.tidy, desk=desk, name="tidy")
        response = echo.options(delay_s=4).remote("delayed")
        made = [await desk.next()]
        await asyncio.sleep(1.1)  # appendfsync everysec

        restartable.stop()
        restartable.start()

        while made[-1].method == "tidy":
            made.append(await desk.next())
        after = await desk.next()
        assert arguments_of(made[-1]) == (("delayed",), {})
        assert after.method == "tidy"
        dues = [due_of(call) for call in made if call.method == "tidy"]
        assert len(dues) == len(set(dues))
        assert not response.done()
    finally:
        await desk.close()
        schedulers.stop()


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self):
        return (open, (self._path, "w"))


def queue_of(settings) -> str:
    """arq's queue."""
    return f"qserve:1:{{{settings.namespace}}}:scheduler"


def jobs(server, settings) -> list[bytes]:
    """The jobs that arq keeps."""
    pattern = f"arq:job:{queue_of(settings)}:*".replace("{", "[{]").replace("}", "[}]")
    return sorted(server.keys(pattern))


def forge(server, settings) -> bool:
    """Put something else in the place of the jobs that are queued now. Whether there were any."""
    names = jobs(server, settings)
    for name in names:
        server.set(name, b"forged")
    return bool(names)
