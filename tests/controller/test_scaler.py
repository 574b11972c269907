"""The scaler on a real server: it looks, decides, remembers and tells why."""

from __future__ import annotations

from math import inf

import pytest

from qserve.controller.scaler import Scaler
from qserve.errors import TransportError
from qserve.spec import Decision, ReplicaState
from qserve.store import calls
from qserve.store.state import Change
from tests.controller.stage import QUICK, Stage, spec

# Targets


async def test_a_deployment_begins_with_its_initial_replicas(stage):
    """`initial_replicas`, or the fewest that it may have."""
    await stage.deploy(spec("Warm", initial_replicas=3), spec("Cold"))

    scaled = await stage.turn()

    assert scaled.targets == {("app", "Warm"): 3, ("app", "Cold"): 1}


async def test_load_raises_the_target_and_the_reason_is_kept(stage):
    """The decision is there for whoever asks why there are ten."""
    await stage.deploy(spec(**QUICK))
    stage.run(1)
    await stage.turn()
    await stage.queue().put(*range(12))
    await stage.turn()

    assert await stage.target() == 6

    newest = (await stage.decisions())[0]
    assert (newest.before, newest.after, newest.at_s) == (1, 6, stage.now)
    assert newest.reason == "12 waiting and 0 running calls ask for 6 replicas at 2 each"


async def test_the_target_goes_down_again(stage):
    """After the delay, in a decision with its own reason."""
    await stage.deploy(spec(initial_replicas=4, **QUICK))
    stage.run(4)
    assert [await stage.target() for _ in range(11)] == [4] * 10 + [1]

    reason = (await stage.decisions())[0].reason
    assert reason == "0 waiting and 0 running calls; no more than 1 replica needed for 10 s"


async def test_deployments_without_autoscaling_are_none_of_its_business(stage):
    """Their number stands in their spec."""
    plain = spec().model_copy(update={"config": spec().config.model_copy(update={"autoscaling_config": None})})
    await stage.deploy(plain)

    assert (await stage.turn()).targets == {}
    assert stage.scaler.due_in_s(stage.now) == inf


async def test_applications_that_a_worker_hosts_by_itself_are_left_alone(stage):
    """Somebody else scales them: KEDA, or an HPA."""
    await stage.deploy(spec(), fixed=True)

    assert (await stage.turn()).targets == {}


async def test_a_paused_deployment_keeps_its_replicas(stage, server):
    """Its calls pile up because somebody wants that: neither do they start replicas, nor does the silence stop any."""
    await stage.deploy(spec(**QUICK))
    stage.run(1)
    await stage.queue().put(*range(12))
    assert await stage.target() == 6
    await stage.deploy(spec(paused=True, **QUICK))
    await stage.queue().put(*range(100))

    assert [await stage.target(after_s=60) for _ in range(3)] == [6] * 3
    assert stage.scaler.due_in_s(stage.now) == inf


# Deploying again


async def test_deploying_again_keeps_the_target(stage):
    """A new version of a deployment under load must not begin with one replica."""
    await stage.deploy(spec(**QUICK))
    stage.run(1)
    await stage.queue().put(*range(12))
    await stage.turn()
    await stage.turn()

    await stage.deploy(spec(**QUICK))

    assert await stage.target(after_s=0.1) == 6
    assert (await stage.records())["app.Echo"].deploy_id == "deploy 2"


async def test_deploying_with_other_limits_keeps_within_them(stage):
    """And says so."""
    await stage.deploy(spec(initial_replicas=8))
    stage.run(8)
    await stage.turn()

    await stage.deploy(spec(max_replicas=5))

    assert await stage.target() == 5
    newest = (await stage.decisions())[0]
    assert (newest.before, newest.after, newest.reason) == (8, 5, "deployed again, with 1..5 replicas")


async def test_what_is_not_autoscaled_any_more_is_forgotten(stage, server):
    """Deployed with autoscaling again, it begins anew."""
    await stage.deploy(spec(initial_replicas=8), spec("Other"))
    await stage.turn()

    await stage.deploy(spec("Other"))
    await stage.turn()

    assert (await stage.records()).keys() == {"app.Other"}


async def test_a_deleted_application_leaves_nothing(stage, server):
    """Neither what was remembered nor what was decided, also when this leader never saw it."""
    await stage.deploy(spec(**QUICK))
    stage.run(1)
    await stage.queue().put(*range(12))
    await stage.turn()
    await stage.turn()
    assert await stage.decisions()
    del stage.apps["app"]
    stage.run(0)
    stage.scaler = Scaler(stage.state)

    await stage.turn()

    assert await stage.records() == {}
    assert await stage.decisions() == []


async def test_an_application_that_cannot_be_trusted_keeps_what_it_had(stage, server):
    """It is not in the snapshot, but it is there: once its key is put right it goes on with its replicas."""
    await stage.deploy(spec(initial_replicas=8))
    await stage.turn()
    server.hset(stage.state.keys.apps, "app", b"forged")
    stage.apps.clear()

    await stage.turn()

    assert (await stage.records())["app.Echo"].target == 8


# Another leader


async def test_another_leader_goes_on_from_the_record(stage):
    """The target, the delays and what replicas take to start: a leader that dies costs a scaling decision nothing."""
    await stage.deploy(spec(initial_replicas=4, downscale_delay_s=60.0))
    stage.run(4, state=ReplicaState.STARTING)
    await stage.turn()
    stage.run(4)
    for _ in range(55):
        assert await stage.target() == 4
    stage.scaler = Scaler(stage.state)

    targets = [await stage.target() for _ in range(10)]

    assert targets[0] == 4
    assert targets[-1] == 1
    assert (await stage.records())["app.Echo"].policy_state["_kept"]["cold_start_s"] == 1.0


async def test_a_leader_that_comes_back_takes_over_what_another_has_decided(stage):
    """It stood by for a minute, and what it remembers is old."""
    await stage.deploy(spec(initial_replicas=2))
    stage.run(2)
    await stage.turn()
    other = Stage(stage.state.link, stage.state.keys.namespace)
    other.apps, other.now = stage.apps, stage.now
    other.run(2)
    await other.queue().put(*range(50))
    await other.queue().claim(count=10)
    for _ in range(40):
        await other.turn()
    decided = (await stage.records())["app.Echo"].target
    assert decided > 2

    assert await stage.target() == decided


async def test_a_decision_that_was_not_written_is_taken_again(stage):
    """The leader was deposed while it wrote, or Redis was away: what stands in Redis counts."""
    await stage.deploy(spec(**QUICK))
    stage.run(1)
    await stage.turn()
    await stage.queue().put(*range(12))
    await stage.turn()
    assert (await stage.decide()).targets == {("app", "Echo"): 6}
    assert (await stage.records())["app.Echo"].target == 1

    assert await stage.target() == 6
    assert (await stage.records())["app.Echo"].target == 6


async def test_state_is_not_written_at_every_look(stage):
    """Each write is an event for all workers: a busy deployment would keep the whole cluster awake."""
    await stage.deploy(spec(**QUICK))
    stage.run(1)
    await stage.queue().put(1, 2)
    await stage.turn()

    written = [bool((await stage.turn()).changes) for _ in range(30)]

    assert sum(written) <= 4


# Trouble


async def test_trouble_with_redis_holds_the_last_decision(stage, monkeypatch):
    """A look that failed says nothing: neither that there is load nor that there is none."""
    await stage.deploy(spec(initial_replicas=4, **QUICK))
    stage.run(4)
    await stage.turn()

    async def away(*_args):
        raise TransportError("away")

    with monkeypatch.context() as patched:
        patched.setattr(calls, "load_of", away)
        assert [await stage.target(after_s=30) for _ in range(3)] == [4] * 3


async def test_without_its_records_a_new_leader_does_not_guess(stage, monkeypatch):
    """With a guess it would stop nine of ten replicas."""
    await stage.deploy(spec(initial_replicas=4))

    async def away():
        raise TransportError("away")

    monkeypatch.setattr(stage.state.link, "ready", away)
    with pytest.raises(TransportError):
        await stage.turn()


async def test_a_queue_that_cannot_be_read_does_not_stop_the_others(stage, server):
    """Somebody has put something else under its name."""
    await stage.deploy(spec("Broken", initial_replicas=3, **QUICK), spec("Sound", **QUICK))
    stage.run(3, "Broken")
    stage.run(1, "Sound")
    await stage.turn()
    server.set(stage.keys("Broken").calls, "junk")
    await stage.queue("Sound").put(*range(12))
    await stage.turn()

    scaled = await stage.turn()

    assert scaled.targets == {("app", "Broken"): 3, ("app", "Sound"): 6}


async def test_a_clock_that_was_put_back_stops_nobody(stage):
    """The leader's host was an hour ahead, and is put right: it looks on."""
    await stage.deploy(spec(**QUICK))
    stage.run(1)
    await stage.turn()
    await stage.queue().put(*range(12))
    stage.now -= 3600

    assert stage.scaler.due_in_s(stage.now) == 0
    await stage.turn()
    assert await stage.target() == 6


async def test_the_last_hundred_decisions_are_kept(stage):
    """A deployment that runs for a year must not fill Redis with its history."""
    key = stage.state.keys.decisions("app", "Echo")
    made = [Decision(at_s=float(number), before=1, after=2, reason="a test") for number in range(105)]

    await stage.state.write([Change(key, "", decision.to_json()) for decision in made], "test")

    assert await stage.decisions() == made[:4:-1]
