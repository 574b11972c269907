"""`serve.cron`, `crons` and `uncron`: what is kept, and what is refused at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

pytest.importorskip("cronsim", reason="the extra [scheduler] is not installed")

import qserve as serve
from qserve.client import portal
from qserve.errors import SerializationError, SignatureError, UsageError
from qserve.handle import DeploymentHandle
from qserve.wire.keys import ClusterKeys
from qserve.wire.messages import open_control, seal_control
from qserve.wire.signing import Direction, KeyRing

ECHO: DeploymentHandle[object] = DeploymentHandle("Echo", "app")


def test_a_recurring_call_is_listed_with_its_next_run(settings):
    """What an operator wants to know of it, on any host."""
    made = serve.cron("0 3 * * *", ECHO.tidy, name="tidy", timezone="Europe/Vienna")

    assert serve.crons() == [made]
    assert (made.app_name, made.deployment_name, made.method_name) == ("app", "Echo", "tidy")
    assert made.next_s is not None
    assert time.time() < made.next_s < time.time() + 86_400 + 3600


def test_without_a_name_it_has_the_name_of_what_it_calls(settings):
    """One recurring call of one method is the usual case."""
    assert serve.cron("* * * * *", ECHO.tidy).name == "app.Echo.tidy"


def test_one_of_the_same_name_is_replaced(settings):
    """A script that registers is run with each deploy: it must not add up."""
    serve.cron("* * * * *", ECHO, 1, name="tidy")
    serve.cron("*/5 * * * *", ECHO, 2, name="tidy")

    assert [each.expression for each in serve.crons()] == ["*/5 * * * *"]


def test_registering_again_without_a_change_writes_nothing(settings, server):
    """Each of fifty web processes registers at its start: the schedulers need not hear of it."""
    kept = ClusterKeys(settings.namespace).crons
    serve.cron("* * * * *", ECHO, 1, name="tidy")
    first = server.hget(kept, "tidy")

    serve.cron("* * * * *", ECHO, 1, name="tidy")

    assert server.hget(kept, "tidy") == first


def test_registering_again_with_a_new_key_signs_it_anew(settings, server):
    """The old key is dropped one day: what only it had signed would stop then."""
    kept = ClusterKeys(settings.namespace).crons
    serve.cron("* * * * *", ECHO, 1, name="tidy")
    portal.use(replace(settings, secrets=(b"the new key of this cluster", *settings.secrets)))
    serve.cron("* * * * *", ECHO, 1, name="tidy")

    new_key_alone = KeyRing((b"the new key of this cluster",))
    opened = open_control(
        server.hget(kept, "tidy"), new_key_alone.signer(Direction.CONTROL, f"{settings.namespace}:cron:tidy")
    )
    assert b"tidy" in opened


def test_a_removed_one_is_gone_and_leaves_nothing(settings, server):
    """And a name that nobody knows is told."""
    serve.cron("* * * * *", ECHO, name="tidy")

    assert serve.uncron("tidy")
    assert not serve.uncron("tidy")
    assert serve.crons() == []
    assert not server.exists(ClusterKeys(settings.namespace).crons)


@pytest.mark.parametrize(
    ("expression", "handle", "options", "said"),
    [
        ("soon", ECHO, {}, "cron expression"),
        ("* * * * *", ECHO, {"timezone": "Mars"}, "timezone"),
        ("* * * * *", ECHO, {"name": "a b"}, "The name"),
        ("* * * * *", ECHO, {"name": ""}, "The name"),
        ("* * * * *", ECHO, {"misfire_grace_s": -1}, "misfire_grace_s"),
        ("* * * * *", ECHO, {"misfire_grace_s": 3601}, "misfire_grace_s"),
        ("* * * * *", print, {}, "calls a handle"),
        ("* * * * *", ECHO.options(delay_s=1), {}, "no delay_s"),
    ],
)
def test_what_is_wrong_is_refused_at_once(settings, expression, handle, options, said):
    """The line that registers raises, not a scheduler at three in the morning."""
    with pytest.raises(UsageError, match=said):
        serve.cron(expression, handle, **options)
    assert serve.crons() == []


def test_arguments_that_cannot_travel_are_refused_at_once(settings):
    """They are pickled now, once."""
    with pytest.raises(SerializationError, match="number 1"):
        serve.cron("* * * * *", ECHO, (each for each in "generator"))


def test_a_response_as_an_argument_is_refused(settings):
    """Its result is gone long before the second run."""
    response = serve.get_response(f"app.Echo.{'0' * 32}")

    with pytest.raises(UsageError, match="cannot take responses"):
        serve.cron("* * * * *", ECHO, response)


async def test_one_that_somebody_else_wrote_is_not_listed(settings, server, desk):
    """Whoever can write to Redis must not have calls made in our name."""
    kept = ClusterKeys(settings.namespace).crons
    record = await registered(desk)
    forged = seal_control(record.to_json(), KeyRing((b"another secret of somebody",)).signer(Direction.CONTROL, "x"))
    server.hset(kept, "forged", forged)
    server.hset(kept, "moved", server.hget(kept, record.name))
    server.hset(kept, b"\xff", b"junk")

    assert list(await desk.crons.all()) == [record.name]
    with pytest.raises(SignatureError):
        await desk.crons.get("moved")


async def registered(desk):
    """A record, as serve.cron keeps it."""
    await asyncio.to_thread(serve.cron, "* * * * *", ECHO, name="own")
    record = await desk.crons.get("own")
    assert record is not None
    return record
