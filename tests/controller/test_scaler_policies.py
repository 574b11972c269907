"""Policies of the user's, as the controller loads and asks them. None of them can hold it up."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from qserve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from qserve.controller import policies
from qserve.controller.policies import Asked, PolicyError
from tests.controller.context import context
from tests.controller.stage import Stage, spec

released = threading.Event()
constructed: list[dict[str, Any]] = []


# What users write


def three(_ctx: AutoscalingContext) -> int:
    """Always three."""
    return 3


def times(ctx: AutoscalingContext, factor: int = 1) -> tuple[float, dict[str, Any]]:
    """So many times the calls; remembers how often it was asked."""
    asked = ctx.policy_state.get("asked", 0) + 1
    return factor * (ctx.total_queued_requests + ctx.total_running_requests), {"asked": asked}


def broken(_ctx: AutoscalingContext) -> int:
    """A slip of the pen."""
    return 1 // 0


def leaves(_ctx: AutoscalingContext) -> int:
    """It thinks that it owns the process."""
    raise SystemExit(1)


def hangs(_ctx: AutoscalingContext) -> int:
    """It waits for another service."""
    released.wait(10)
    return 4


def forgets_json(_ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """A state that nobody can write down."""
    return 5, {"lock": threading.Lock()}


def collects(ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """A state that grows."""
    return 5, {"seen": ctx.policy_state.get("seen", "") + "x" * 100_000}


class Fixed:
    """A class, constructed once."""

    def __init__(self, number: int) -> None:
        constructed.append({"number": number})
        self._number = number

    def __call__(self, _ctx: AutoscalingContext) -> int:
        return self._number


def scaled_by(policy: Any, **kwargs: Any) -> dict[str, Any]:
    """The options of a deployment with that policy, which acts at once."""
    named = AutoscalingPolicy(policy_function=policy, policy_kwargs=kwargs)
    return {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0, "policy": named}


def asked(policy: Any, **kwargs: Any) -> Asked:
    """The policy as a deployment's."""
    return Asked(AutoscalingConfig(max_replicas=20, **scaled_by(policy, **kwargs)))


async def run(stage: Stage, policy: Any, **kwargs: Any) -> int:
    """The target that a deployment with one replica has by that policy."""
    await stage.deploy(spec(**scaled_by(policy, **kwargs)))
    stage.run(1)
    return await stage.target()


async def test_a_policy_decides(stage):
    """Any function that is installed where the controllers run."""
    assert await run(stage, three) == 3
    assert (await stage.decisions())[0].reason == "the policy asks for 3 replicas, with 0 waiting and 0 running calls"


async def test_a_policy_is_named_by_its_import_path(stage):
    """As a config file has it."""
    assert await run(stage, "tests.controller.test_scaler_policies:three") == 3


async def test_a_class_is_constructed_once_with_its_arguments(stage):
    """It may load something, or open a connection."""
    constructed.clear()

    assert await run(stage, Fixed, number=7) == 7
    assert [await stage.target() for _ in range(3)] == [7] * 3
    assert constructed == [{"number": 7}]


async def test_a_function_gets_its_arguments_with_each_call(stage):
    """`policy_kwargs` are there for both."""
    await stage.deploy(spec(**scaled_by(times, factor=3)))
    stage.run(1)
    await stage.queue().put(1, 2)

    assert await stage.target() == 6


async def test_a_policy_is_asked_also_when_nothing_happens(stage):
    """Its reasons may lie elsewhere: the hour, a price, another queue."""
    await stage.deploy(spec(**scaled_by(times, factor=0)))
    stage.run(1)
    for _ in range(20):
        await stage.turn()
    stage.scaler = type(stage.scaler)(stage.state)
    await stage.turn(after_s=11)

    state = (await stage.records())["app.Echo"].policy_state

    assert state["asked"] > 10


async def test_another_policy_does_not_get_the_state_of_the_last(stage):
    """It would not know what to make of it."""
    await run(stage, times)
    await stage.turn(after_s=11)
    assert "asked" in (await stage.records())["app.Echo"].policy_state

    await run(stage, three)

    assert (await stage.records())["app.Echo"].policy_state.keys() == {"_kept"}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (broken, "ZeroDivisionError: integer division or modulo by zero"),
        (leaves, "SystemExit: 1"),
        (forgets_json, "its state is not JSON"),
        (collects, "its state has 100"),
        ("not_installed:policy", "ModuleNotFoundError: No module named 'not_installed'"),
        ("tests.controller.test_scaler_policies:missing", "AttributeError"),
    ],
)
async def test_a_policy_that_fails_changes_nothing_and_is_told_of_once(stage, caplog, policy, message):
    """The deployment goes on with what it has; a person finds the error in the decisions and in the log."""
    await stage.deploy(spec(initial_replicas=4, **scaled_by(policy)))
    stage.run(4)

    assert [await stage.target() for _ in range(5)] == [4] * 5

    decisions = await stage.decisions()
    assert len(decisions) == 1
    assert (decisions[0].before, decisions[0].after) == (4, 4)
    assert "so the last decision holds" in decisions[0].reason
    assert message in decisions[0].reason
    assert sum(message in record.getMessage() for record in caplog.records) == 1


async def test_a_policy_that_hangs_holds_up_nobody(stage, monkeypatch):
    """Its deployment waits for it; the others, and the controller's lease, do not."""
    monkeypatch.setattr(policies, "_PATIENCE_S", 0.02)
    released.clear()
    await stage.deploy(spec("Slow", **scaled_by(hangs)), spec("Quick", **scaled_by(three)))
    for name in ("Slow", "Quick"):
        stage.run(1, name)

    assert (await stage.turn()).targets == {("app", "Slow"): 1, ("app", "Quick"): 3}
    released.set()
    monkeypatch.setattr(policies, "_PATIENCE_S", 5.0)
    assert await stage.target(name="Slow") == 4


async def test_a_policy_that_never_answers_is_an_error(monkeypatch):
    """Somebody must hear of it."""
    monkeypatch.setattr(policies, "_PATIENCE_S", 0.02)
    released.clear()
    slow = asked(hangs)
    assert await slow.decide(context()) is None

    monkeypatch.setattr(policies, "_TIMEOUT_S", 0.0)
    with pytest.raises(PolicyError, match="has not answered"):
        await slow.decide(context())
    released.set()


@pytest.mark.parametrize(
    "path",
    [
        "qserve.controller.autoscale:ray_policy",
        "ray.serve.autoscaling_policy:default_autoscaling_policy",
    ],
)
async def test_ray_serves_own_policy_is_there_under_both_names(path):
    """A config that Ray Serve has written out names it; Ray need not be installed."""
    verdict = await asked(path).decide(context(1, 12))

    assert verdict is not None
    assert verdict.reason == "12 waiting and 0 running calls ask for 6 replicas at 2 each"


async def test_a_state_that_somebody_else_wrote_is_given_up(stage, server):
    """Whoever reaches Redis may have written it: the deployment must not be stuck with it."""
    await stage.deploy(spec())
    stage.run(1)
    await stage.turn()
    record = (await stage.records())["app.Echo"]
    junk = record.model_copy(update={"policy_state": {"_kept": record.policy_state["_kept"], "_queue": {"peaks": "?"}}})
    server.hset(stage.state.keys.scaling, "app.Echo", junk.to_json())
    await stage.queue().put(*range(8))

    await stage.turn(after_s=6)
    await stage.turn()

    assert "cannot be read" in (await stage.decisions())[0].reason
    assert len(await stage.decisions()) == 1
