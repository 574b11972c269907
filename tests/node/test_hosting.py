"""What a worker gives to its replicas: never more than it has, and each its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import psutil
import pytest

import qserve as serve
from qserve.config import LEASE_S
from qserve.node import resources
from qserve.spec import ExitCause, ReplicaState
from tests.node.leader import Leader, leading
from tests.store.until import until


@serve.deployment
class Looking:
    """Tells what it sees."""

    def sees(self, name: str) -> str | None:
        return os.environ.get(name)


@pytest.fixture
async def small(settings, monkeypatch) -> AsyncIterator[Leader]:
    """A worker of two GPUs and one ticket."""
    monkeypatch.setattr(resources, "visible_gpus", lambda: ("4", "GPU-bbbb"))
    async with leading(settings, num_gpus=2.0, tickets=1.0) as made:
        yield made


def taking(**amounts: float):
    """The deployment with what one of its replicas takes; custom resources too."""
    known = {name: amount for name, amount in amounts.items() if name.startswith("num_")}
    custom = {name: amount for name, amount in amounts.items() if name not in known}
    return Looking.options(ray_actor_options={"num_cpus": 0, **known, "resources": custom}).bind()


async def test_what_does_not_fit_is_refused_with_what_is_missing(small):
    """The leader places it elsewhere, or says on the status what no node has. It is not tried here again."""
    replica = await small.assign(await small.deploy(taking(tickets=2.0)))
    refused = await small.shows(replica, ReplicaState.FAILED)

    assert refused.cause is ExitCause.REFUSED
    assert "it needs tickets=2, and 1 of 1 is free here" in refused.message
    assert small.agent.record.node_id in refused.message
    await small.host(taking(tickets=1.0))
    assert await small.record(replica) == refused


async def test_a_replica_holds_its_part_until_its_process_is_gone(small):
    """Two models in the memory of one, for as long as the first one takes to leave."""
    first = await small.host(taking(tickets=1.0))
    second = await small.assign(small.specs["Looking"])
    assert (await small.shows(second, ReplicaState.FAILED)).cause is ExitCause.REFUSED
    await small.unassign(first)
    await small.has_left(first)

    third = await small.assign(small.specs["Looking"])
    record = await small.shows(third, ReplicaState.RUNNING)
    assert record.resources == {"tickets": 1.0}


async def test_each_replica_sees_its_own_gpus(small):
    """Frameworks take all the devices that they see."""
    replica = await small.host(taking(num_gpus=1))
    sees = small.handle("Looking").sees
    assert await sees.remote("CUDA_VISIBLE_DEVICES") == "4"
    assert (await small.record(replica)).gpus == ("4",)
    await small.unassign(replica)
    await small.has_left(replica)

    replica = await small.host(taking(num_gpus=2))
    assert await sees.remote("CUDA_VISIBLE_DEVICES") == "4,GPU-bbbb"


async def test_halves_of_a_gpu_are_on_one_and_none_means_none(small):
    """A share is a device that somebody else sees, too. Who asked for none must not touch any."""
    shares = [await small.host(taking(num_gpus=0.5)) for _ in range(2)]
    assert [(await small.record(replica)).gpus for replica in shares] == [("4",), ("4",)]
    for replica in shares:
        await small.unassign(replica)
        await small.has_left(replica)

    await small.host(taking())
    assert await small.handle("Looking").sees.remote("CUDA_VISIBLE_DEVICES") == ""


async def test_a_worker_without_gpus_leaves_that_variable_alone(leader, monkeypatch):
    """Its user may have chosen devices by hand, which we know nothing of."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    await leader.host(taking())
    assert await leader.handle("Looking").sees.remote("CUDA_VISIBLE_DEVICES") == "7"


async def test_a_replica_has_the_variables_of_its_runtime_env(leader):
    """Tokens, thread counts of libraries: they must be there before the first import."""
    options = {"num_cpus": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "3"}}}
    await leader.host(Looking.options(ray_actor_options=options).bind())
    assert await leader.handle("Looking").sees.remote("OMP_NUM_THREADS") == "3"
    assert "OMP_NUM_THREADS" not in os.environ


async def test_variables_that_no_process_can_have_fail_the_start_alone(leader):
    """One application's slip must not end the worker, and with it all the others."""
    options = {"num_cpus": 0, "runtime_env": {"env_vars": {"TOKEN": "a\0b"}}}
    replica = await leader.assign(await leader.deploy(Looking.options(ray_actor_options=options).bind()))
    failed = await leader.shows(replica, ReplicaState.FAILED)
    assert "null byte" in failed.message

    await leader.host(taking())


async def test_an_application_has_variables_for_all_its_replicas(leader):
    """A deployment's own go before them."""
    options = {"num_cpus": 0, "runtime_env": {"env_vars": {"MODE": "own"}}}
    spec = await leader.deploy(Looking.options(ray_actor_options=options).bind())
    app = await leader.state.app(spec.app)
    spec = spec.model_copy(update={"env_vars": {"MODE": "of all", "REGION": "eu"}})
    await leader.state.deploy(app.model_copy(update={"deployments": (spec,)}), {})
    await leader.shows(await leader.assign(spec), ReplicaState.RUNNING)

    sees = leader.handle("Looking").sees
    assert [await sees.remote(name) for name in ("MODE", "REGION")] == ["own", "eu"]


async def test_a_worker_that_comes_back_drains_what_was_given_away(leader, server):
    """It was cut off: the leader has forgotten it, and others serve in the place of its replicas."""
    replica = await leader.host(taking())
    pid = (await leader.record(replica)).pid
    keys, node_id = leader.state.keys, leader.agent.record.node_id
    server.delete(keys.node_lease(node_id), keys.assignments(node_id))
    server.hdel(keys.nodes, node_id)
    server.hdel(keys.replicas, replica)

    await until(lambda: server.hexists(keys.nodes, node_id), within_s=LEASE_S)
    await leader.has_left(replica)
    assert not psutil.pid_exists(pid)
