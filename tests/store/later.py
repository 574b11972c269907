"""Delayed calls as the tests of the store drive them."""

from __future__ import annotations

import asyncio

from qserve.errors import DeploymentUnavailableError
from qserve.spec import AppSpec, DeploymentSpec
from qserve.store import calls, delayed
from qserve.store.delayed import Due, Look
from qserve.wire.keys import ClusterKeys
from tests.store.queue import id_of
from tests.store.records import ECHO

SOON = Due(40, after=True)
LATER = Due(3_600_000, after=True)
GONE = DeploymentUnavailableError("Deployment 'Echo' was deleted before the call was due.")
APP = AppSpec(
    name="app",
    ingress="Echo",
    deployments=(DeploymentSpec(**{**ECHO.model_dump(), "app": "app"}),),
    deployed_at_s=1.0,
    deploy_id="d1",
)


async def delay(queue, *numbers: int, due: Due = LATER) -> list[int]:
    """Keep calls until they are due, in one batch. Returns [taken, 0 or -1]."""
    answer = asyncio.get_running_loop().create_future()
    delayed.put(await queue.pipe(), queue.keys, [(*queue.sealed(n), due) for n in numbers], answer.set_result)
    reply = await answer
    if isinstance(reply, Exception):
        raise reply
    return list(reply)


async def look(queue) -> Look:
    """What is due."""
    return await delayed.look(queue.link, queue.keys)


async def release(queue, *numbers: int) -> int:
    """Move calls into the queue."""
    return await delayed.release(queue.link, queue.keys, [id_of(n) for n in numbers])


async def call_off(queue) -> int:
    """Answer what is not due yet, as the controller does for a deleted deployment."""
    return await delayed.call_off(queue.link, queue.ring, queue.keys, GONE)


async def fall_asleep(queue) -> None:
    """As the autoscaler leaves a deployment without replicas and without calls."""
    assert await calls.fall_asleep(queue.link, queue.keys, ClusterKeys(queue.keys.namespace).events, "wake app.Echo")
