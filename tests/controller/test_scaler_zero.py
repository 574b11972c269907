"""Scale to zero and back on a real server, and what idling costs."""

from __future__ import annotations

from qserve.store import calls
from tests.controller.stage import QUICK, spec


def asked(server) -> dict[str, int]:
    """How often each command was run since the statistics were reset."""
    counted = {name[len("cmdstat_") :]: stat["calls"] for name, stat in server.info("commandstats").items()}
    return {name: count for name, count in counted.items() if name not in ("config|resetstat", "info", "ping")}


# Zero


async def test_a_deployment_without_replicas_falls_asleep(stage, server):
    """When its last replica has left, not before."""
    await stage.deploy(spec(min_replicas=0, initial_replicas=1, **QUICK))
    stage.run(1)
    for _ in range(11):
        await stage.turn()
    assert await stage.target() == 0
    assert not server.exists(stage.keys().asleep)
    stage.run(0)

    await stage.turn(after_s=0.1)

    assert server.exists(stage.keys().asleep)
    assert not server.exists(stage.keys().calls)


async def test_a_call_to_a_sleeping_deployment_is_looked_at_at_once(stage, server):
    """The event names the deployment; the exact number starts, and nobody polled."""
    await stage.deploy(spec(min_replicas=0))
    await stage.turn()
    assert server.exists(stage.keys().asleep)
    assert stage.scaler.due_in_s(stage.now) > 0
    told = server.pubsub()
    told.subscribe(stage.state.keys.events)
    told.get_message(timeout=1)
    await stage.queue().put(*range(7))
    event = told.get_message(timeout=1)["data"].decode()
    told.close()

    assert event == "wake app.Echo"
    stage.scaler.wake(event.partition(" ")[2])

    assert stage.scaler.due_in_s(stage.now) == 0
    assert await stage.target(after_s=0.01) == 4
    assert (await stage.decisions())[
        0
    ].reason == "7 waiting and 0 running calls, and no replica runs: 4 replicas at 2 each"


async def test_a_call_whose_event_nobody_heard_is_found(stage):
    """The leader lost its connection just then. A glance every few seconds is what it costs to be sure."""
    await stage.deploy(spec(min_replicas=0))
    await stage.turn()
    await stage.queue().put(1)

    assert await stage.target(after_s=6) == 1


async def test_a_deployment_that_is_deployed_again_falls_asleep_again(stage, server):
    """A deploy opens its queue; nobody calls, and nobody else would close it."""
    await stage.deploy(spec(min_replicas=0))
    await stage.turn()
    await stage.deploy(spec(min_replicas=0))
    assert not server.exists(stage.keys().asleep)

    assert await stage.target() == 0

    assert server.exists(stage.keys().asleep)


async def test_a_call_that_comes_while_a_look_is_on_its_way_is_not_missed(stage, monkeypatch):
    """The glance has seen the deployment asleep, the event came before the answer: it looks again at once."""
    await stage.deploy(spec(min_replicas=0))
    await stage.turn()
    glance = calls.is_asleep

    async def slow_glance(pipe, keys):
        found = await glance(pipe, keys)
        await stage.queue().put(1)
        stage.scaler.wake("app.Echo")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(calls, "is_asleep", slow_glance)
        assert await stage.target(after_s=6) == 0

    assert stage.scaler.due_in_s(stage.now) == 0
    assert await stage.target(after_s=0.01) == 1


async def test_an_event_for_nothing_changes_nothing(stage, server):
    """A batch that was sent again, a forged event: it looks, and lets it sleep on."""
    await stage.deploy(spec(min_replicas=0))
    await stage.turn()
    stage.scaler.wake("app.Echo")
    stage.scaler.wake("app.Nobody")

    assert await stage.target() == 0
    assert server.exists(stage.keys().asleep)


# Cost


async def test_two_hundred_idle_deployments_cost_next_to_nothing(stage, server):
    """Counted by the server: every command, also those inside scripts."""
    await stage.deploy(*(spec(f"D{number}") for number in range(200)))
    for number in range(200):
        stage.run(1, f"D{number}")
    await stage.turn()
    await stage.turn(after_s=5)
    server.config_resetstat()

    for _ in range(20):
        await stage.turn()

    assert sum(asked(server).values()) / 20 < 60


async def test_two_hundred_sleeping_deployments_cost_no_more(stage, server):
    """Nobody looks at their queues: they have none."""
    await stage.deploy(*(spec(f"D{number}", min_replicas=0) for number in range(200)))
    await stage.turn()
    server.config_resetstat()

    for _ in range(20):
        await stage.turn()

    assert set(asked(server)) == {"exists", "hgetall"}
    assert sum(asked(server).values()) / 20 < 60


async def test_it_looks_again_when_it_said(stage):
    """The loop sleeps until then."""
    await stage.deploy(spec())
    stage.run(1)
    await stage.turn()

    due_in_s = stage.scaler.due_in_s(stage.now)

    assert 0 < due_in_s <= 5
    assert stage.scaler.due_in_s(stage.now + due_in_s) == 0
