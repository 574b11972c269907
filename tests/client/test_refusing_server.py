"""A Redis that takes connections and does not serve: calls wait for it as long as for one that is away, no longer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qserve.client import outbox, portal
from qserve.client.handle import DeploymentHandle
from qserve.errors import BrokerUnavailable
from tests.store.until import until
from tests.support.refusing import refusing_server


@pytest.fixture
async def refusing(settings):
    """A server that says LOADING to every put; this process's cluster is on it."""
    async with refusing_server() as server:
        portal.use(replace(settings, redis_url=f"unix://{server.path}"))
        yield server
        portal.use(None)


@pytest.mark.parametrize("refusal", ["LOADING", "READONLY", "MISCONF"])
async def test_a_call_that_is_only_ever_refused_fails_with_the_refusal(refusing, monkeypatch, refusal):
    """A replica promoted by nobody, a full disk: the caller must hear of it, and not wait for ever."""
    monkeypatch.setattr(outbox, "ENQUEUE_TIMEOUT_S", 0.3)
    refusing.refusal = f"-{refusal} not now\r\n".encode()

    with pytest.raises(BrokerUnavailable, match=f"{refusal} not now"):
        await DeploymentHandle("Echo", "app").remote(1)
    assert len(refusing.connected_at) < 15, "it was knocked at without a pause"


async def test_a_call_that_was_refused_is_stored_when_redis_serves_again(refusing):
    """Loading ends: nobody who waited through it needs to know."""
    response = DeploymentHandle("Echo", "app").remote(1)
    await until(lambda: len(refusing.connected_at) > 4)
    refusing.refusal = b""

    await until(lambda: response.confirmed)


async def test_a_late_call_has_its_own_time(refusing, monkeypatch):
    """Who comes at the end of an outage must not be failed at once for those who came at its beginning."""
    monkeypatch.setattr(outbox, "ENQUEUE_TIMEOUT_S", 0.5)
    handle: DeploymentHandle[Any] = DeploymentHandle("Echo", "app")
    early = handle.remote(1)
    await until(lambda: len(refusing.connected_at) > 7)
    second = handle.remote(2)

    with pytest.raises(BrokerUnavailable):
        await early
    assert not second.done()
    with pytest.raises(BrokerUnavailable):
        await second
