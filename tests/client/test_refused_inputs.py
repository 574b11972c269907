"""A call that was refused, and whose answer others were promised: they hear the reason, and at once."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from qserve.client.handle import DeploymentHandle
from qserve.client.portal import get_response
from qserve.errors import BackPressureError, DeploymentUnavailableError


async def read_elsewhere(name):
    """Fetch a response in another event loop of this process; it asks Redis."""

    async def read():
        return await get_response(name)

    return await asyncio.to_thread(asyncio.run, asyncio.wait_for(read(), 3))


async def test_a_reader_of_a_call_that_found_the_queue_full_is_told_so(replica):
    """The dependent call fails with the real reason, which says what to do: CallLost after 5 s would mislead."""
    refused = DeploymentHandle("Echo", "app", max_queued_requests=0).remote(1)
    name = refused.request_id

    with pytest.raises(BackPressureError) as caught:
        await read_elsewhere(name)
    assert caught.value.max_queued_requests == 0
    with pytest.raises(BackPressureError):
        await refused


async def test_a_reader_that_comes_after_the_refusal_is_told_too(settings):
    """The response is pickled into a call when its own refusal is here already."""
    refused = DeploymentHandle("Gone", "app").remote(1)
    await asyncio.wait([asyncio.ensure_future(refused)])
    pickle.dumps(refused)

    with pytest.raises(DeploymentUnavailableError, match="'Gone' of application 'app' is not deployed"):
        await read_elsewhere(refused.request_id)
