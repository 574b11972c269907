"""Another configuration for a replica that runs: in place, while calls go on."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import qserve as serve
from qserve.spec import DeploymentSpec, ExitCause, ReplicaState


@serve.deployment(max_ongoing_requests=2)
class Tuned:
    """Keeps all that it was configured to. A configuration that names a gate waits for it, in a thread."""

    def __init__(self) -> None:
        self.configs: list[Any] = []
        self.now = self.most = 0
        self.gate = asyncio.Event()

    def reconfigure(self, config: dict[str, Any]) -> None:
        if config.get("broken"):
            raise ValueError(f"no such model: {config['broken']}")
        while (gate := config.get("gate")) and not Path(gate).exists():
            time.sleep(0.005)
        self.configs.append(config)

    def about(self) -> tuple[int, list[Any]]:
        return os.getpid(), self.configs

    async def hold(self) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.gate.wait()
        self.now -= 1
        return self.most

    async def release(self) -> None:
        self.gate.set()


@serve.deployment
class Asynchronous:
    """Its hook is a coroutine."""

    async def reconfigure(self, config: str) -> None:
        await asyncio.sleep(0)
        self.config = config

    def configured(self) -> str:
        return self.config


async def applied(leader, replica: str, spec: DeploymentSpec) -> None:
    """Have a replica take over the configuration, and wait until it has."""
    await leader.assign(spec, replica)
    await leader.finds(replica, lambda r: r.config_version == spec.config_version and r.state is ReplicaState.RUNNING)


async def test_the_process_stays_the_same(leader):
    """A model that took minutes to load is not loaded again for a threshold."""
    replica = await leader.host(Tuned.options(user_config={"threshold": 1}).bind())
    pid, configs = await leader.handle("Tuned").about.remote()
    assert configs == [{"threshold": 1}]

    await applied(leader, replica, await leader.deploy(Tuned.options(user_config={"threshold": 2}).bind()))

    assert await leader.handle("Tuned").about.remote() == (pid, [{"threshold": 1}, {"threshold": 2}])


async def test_a_coroutine_may_take_the_configuration(leader):
    """Most set-up work of an asynchronous class is asynchronous."""
    replica = await leader.host(Asynchronous.options(user_config="first").bind())
    await applied(leader, replica, await leader.deploy(Asynchronous.options(user_config="second").bind()))
    assert await leader.handle("Asynchronous").configured.remote() == "second"


async def test_calls_go_on_while_it_is_reconfigured(leader, tmp_path):
    """It may take as long as loading a model; the state says so meanwhile."""
    gate = tmp_path / "gate"
    replica = await leader.host(Tuned.bind())
    spec = await leader.deploy(Tuned.options(user_config={"gate": str(gate)}).bind())
    await leader.assign(spec, replica)
    updating = await leader.shows(replica, ReplicaState.UPDATING)
    assert updating.config_version != spec.config_version

    assert (await leader.handle("Tuned").about.remote())[1] == []
    gate.touch()
    running = await leader.shows(replica, ReplicaState.RUNNING)
    assert running.config_version == spec.config_version


async def test_user_code_hears_only_of_its_own_configuration(leader):
    """`reconfigure` may be costly: more slots are no reason to run it."""
    replica = await leader.host(Tuned.options(user_config={"threshold": 1}).bind())
    app = Tuned.options(user_config={"threshold": 1}, max_ongoing_requests=7, health_check_period_s=1.0).bind()
    await applied(leader, replica, await leader.deploy(app))
    assert (await leader.handle("Tuned").about.remote())[1] == [{"threshold": 1}]


async def test_an_error_in_reconfigure_ends_the_replica_with_its_traceback(leader):
    """It is in no state that anybody planned; the message is what its author needs."""
    replica = await leader.host(Tuned.bind())
    await leader.assign(await leader.deploy(Tuned.options(user_config={"broken": "huge"}).bind()), replica)

    died = await leader.shows(replica, ReplicaState.DIED)
    assert died.cause is ExitCause.START
    assert "could not take over its new configuration" in died.message
    assert "ValueError: no such model: huge" in died.message
    assert any(seen.state is ReplicaState.STOPPING and seen.cause for seen in leader.seen[replica])


async def test_more_slots_are_there_at_once(leader):
    """Waiting calls start without a restart: the last of these frees all others."""
    replica = await leader.host(Tuned.bind())
    handle = leader.handle("Tuned")
    held = [handle.hold.remote() for _ in range(4)]
    await applied(leader, replica, await leader.deploy(Tuned.options(max_ongoing_requests=5).bind()))
    await handle.release.remote()
    assert max(await asyncio.gather(*held)) == 4


async def test_a_paused_replica_leaves_the_calls_to_others_until_it_goes_on(leader):
    """What it runs ends as ever, and its process stays: pausing is no restart."""
    paused = await leader.host(Tuned.bind())
    handle = leader.handle("Tuned")
    pid, _ = await handle.about.remote()
    running = handle.hold.remote()
    await applied(leader, paused, await leader.deploy(Tuned.bind(), paused=True))
    other = await leader.host(Tuned.bind())

    answers = [await handle.about.remote() for _ in range(20)]
    assert pid not in {pid for pid, _ in answers}
    await leader.unassign(other)
    await leader.has_left(other)
    await applied(leader, paused, leader.specs["Tuned"])
    assert await handle.about.remote() == (pid, [])
    await handle.release.remote()
    assert await running == 1


async def test_a_configuration_that_is_wanted_no_more_is_not_taken_over(leader):
    """It is the leader who says which replica changes, and when: what it meant may be out of date already."""
    replica = await leader.host(Tuned.options(user_config={"threshold": 1}).bind())
    before = await leader.record(replica)
    stale = await leader.deploy(Tuned.options(user_config={"threshold": 2}).bind())
    latest = await leader.deploy(Tuned.options(user_config={"threshold": 3}).bind())
    await leader.assign(stale, replica)
    await leader.shows(await leader.assign(latest), ReplicaState.RUNNING)

    assert await leader.record(replica) == before
