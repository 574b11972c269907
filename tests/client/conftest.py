"""The client against a real store: the test plays the replica, so that it decides when a call is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from qserve.client.handle import DeploymentHandle
from qserve.config import Settings
from qserve.store import calls
from qserve.store.calls import Finished
from qserve.store.connection import endpoint_of
from qserve.store.link import Link
from qserve.wire import codec
from qserve.wire.keys import DeploymentKeys, deployment_keys
from qserve.wire.messages import Serializer, open_call, seal_reply
from qserve.wire.signing import Direction, KeyRing


class Replica:
    """Answers calls when the test says so."""

    def __init__(self, link: Link, ring: KeyRing, keys: DeploymentKeys) -> None:
        self.link = link
        self.keys = keys
        self._calls = ring.signer(Direction.CALL, keys.scope)
        self._replies = ring.signer(Direction.REPLY, keys.scope)

    async def waiting(self) -> int:
        """How many calls are in the queue."""
        return (await calls.depth(self.link, self.keys)).waiting

    async def answer(self, value: Any) -> None:
        """Take the next call, wait for it if need be, and return `value` to its caller."""
        entries = await calls.claim(await self.link.ready(), self.keys, "r1", 1, 5000)
        assert entries, "no call has come"
        call = open_call(entries[0].envelope, self._calls)
        reply = seal_reply(codec.encode_result(call.call_id, value, Serializer.PICKLE), self._replies)
        assert await calls.finish_one(self.link, self.keys, Finished(entries[0], call.call_id, call.inbox, reply))


@pytest.fixture
async def replica(settings: Settings) -> AsyncIterator[Replica]:
    """The only replica of a deployment, whose queue is open."""
    keys = deployment_keys(settings.namespace, "app", "Echo")
    link = Link(endpoint_of(settings), "test-replica")
    await calls.open_queue(await link.ready(), keys)
    yield Replica(link, KeyRing(settings.secrets), keys)
    await link.close()


@pytest.fixture
def echo(replica: Replica) -> DeploymentHandle[Any]:
    """The handle of that deployment."""
    return DeploymentHandle("Echo", "app")
