"""The scripts that use nothing but commands, on fakeredis: another implementation of them, in process, in milliseconds.

The others are tested on a real server only: fakeredis has no `struct` for notes, and another XPENDING.
"""

from __future__ import annotations

import fakeredis
import pytest

from qserve.store import scripts
from qserve.store.scripts import Script
from qserve.wire.keys import GROUP

QUEUE, FRONT, DELAYED, ASLEEP, RECORDS = "queue", "front", "delayed", "asleep", ("record-1", "record-2")


@pytest.fixture
def fake() -> fakeredis.FakeRedis:
    """An empty server with one deployment's queue."""
    client = fakeredis.FakeRedis()
    for stream in (QUEUE, FRONT):
        client.xgroup_create(stream, GROUP, "0", mkstream=True)
    return client


def run(fake: fakeredis.FakeRedis, script: Script, keys: list[str], *arguments: str | int):
    """Run a script as the data path does."""
    return fake.eval(script.source.decode(), len(keys), *keys, *arguments)


def test_put_sent_twice_adds_each_call_once(fake):
    """A client that lost the confirmation sends again: the calls must not run twice."""
    keys = [QUEUE, FRONT, ASLEEP, *RECORDS]

    first = run(fake, scripts.PUT, keys, GROUP, -1, "envelope-1", "envelope-2")
    second = run(fake, scripts.PUT, keys, GROUP, -1, "envelope-1", "envelope-2")

    assert (first, second) == ([2, 0], [2, 0])
    assert [fields[b"c"] for _, fields in fake.xrange(QUEUE)] == [b"envelope-1", b"envelope-2"]


def test_put_refuses_when_the_deployment_is_gone(fake):
    """Without its stream a deployment is deleted: a call put there would wait for ever."""
    assert run(fake, scripts.PUT, ["elsewhere", FRONT, ASLEEP, "record-1"], GROUP, -1, "envelope") == [0, -1]
    assert not fake.exists("elsewhere", "record-1")


def test_watch_registers_an_inbox_once(fake):
    """A process that asks twice is told once."""
    fake.set("record-1", "Qc1-1")

    run(fake, scripts.WATCH, ["record-1"], "inbox-a")
    run(fake, scripts.WATCH, ["record-1"], "inbox-a")

    assert fake.get("record-1") == b"Qc1-1|inbox-a"


def test_a_second_controller_does_not_lead(fake):
    """Two leaders would start everything twice."""
    assert run(fake, scripts.LEAD, ["leader", "term"], "a", 6000) == 1
    assert run(fake, scripts.LEAD, ["leader", "term"], "b", 6000) == 0
    assert run(fake, scripts.RESIGN, ["leader"], "1:a") == 1
    assert run(fake, scripts.LEAD, ["leader", "term"], "b", 6000) == 2


def test_a_deposed_leader_writes_nothing(fake):
    """A paused ex-leader wakes up with an old plan: it must not change what the new leader decided."""
    fake.set("leader", "2:b")
    keys = ["leader", "generation", "assigned"]

    written = run(fake, scripts.WRITE, keys, "1:a", "events", "assign node", 1, "replica", "{}")

    assert written == 0
    assert not fake.exists("assigned", "generation")


def test_retire_keeps_a_queue_that_holds_calls(fake):
    """A deleted deployment's last calls are answered before their queue goes."""
    run(fake, scripts.PUT, [QUEUE, FRONT, ASLEEP, "record-1"], GROUP, -1, "envelope")

    assert run(fake, scripts.RETIRE, [QUEUE, FRONT, DELAYED, ASLEEP]) == 0
    fake.xtrim(QUEUE, maxlen=0)
    assert run(fake, scripts.RETIRE, [QUEUE, FRONT, DELAYED, ASLEEP]) == 1
    assert not fake.exists(QUEUE, FRONT)
