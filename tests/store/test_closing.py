"""The end of a queue: who waits in it gets an answer, and its own."""

from __future__ import annotations

import pytest

from qserve.errors import CallRejected, DeploymentUnavailableError
from qserve.store import calls
from qserve.store.calls import MOST_PER_SWEEP
from qserve.store.closing import answer_waiting
from qserve.wire.keys import GROUP

GONE = DeploymentUnavailableError("Deployment 'Echo' was deleted before the call ran.")


@pytest.mark.leaves(replies=3)
async def test_calls_that_wait_are_answered_in_both_streams(queue, ear):
    """The deployment is deleted: a caller must hear that, and not wait for a replica that never comes."""
    await queue.put(1, 2)
    await queue.hand_back("r1", *await queue.claim("r1", count=1))
    await queue.leave("r1")
    await queue.put(3)

    assert await close(queue) == 3

    for number in (1, 2, 3):
        with pytest.raises(DeploymentUnavailableError, match="was deleted before the call ran"):
            await queue.answer(number)
    assert len(await ear.heard()) == 3
    assert await calls.retire(queue.link, queue.keys)


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_calls_that_run_are_left_to_their_replicas(queue):
    """They were accepted, and started: a delete drains, it does not break off."""
    await queue.put(1)
    await queue.claim("r1")

    assert await close(queue) == 0


@pytest.mark.leaves(replies=2 * MOST_PER_SWEEP + 1)
async def test_a_long_queue_is_answered_to_its_end(queue):
    """Thousands may wait for a deployment that never came up."""
    await queue.put(*range(2 * MOST_PER_SWEEP + 1))

    assert await close(queue) == 2 * MOST_PER_SWEEP + 1


@pytest.mark.leaves(replies=1)
async def test_what_a_closer_took_and_did_not_answer_is_answered_by_the_next(queue):
    """The controller was killed in the middle; its successor goes on."""
    await queue.put(1)
    await queue.link.call("XREADGROUP", "GROUP", GROUP, "closer", "STREAMS", queue.keys.calls, ">")

    assert await close(queue) == 1


@pytest.mark.leaves(quarantined=1, replies=1)
async def test_entries_that_cannot_be_trusted_are_not_answered_as_calls(queue, server):
    """An unsigned entry of somebody else must not end the answering of the others."""
    server.xadd(queue.keys.calls, {"c": b"junk"})
    await queue.put(1)

    assert await close(queue) == 2


@pytest.mark.leaves(quarantined=1, replies=1)
async def test_a_caller_with_another_secret_is_told_so(queue, server):
    """Its call cannot be opened, but it waits all the same."""
    envelope = bytearray(queue.sealed(1)[1])
    envelope[-1] ^= 1
    entry = server.xadd(queue.keys.calls, {"c": bytes(envelope)})
    server.set(queue.keys.record((1).to_bytes(16)), b"Qc" + entry)

    await close(queue)

    with pytest.raises(CallRejected):
        await queue.answer(1)


async def test_a_queue_that_is_gone_is_closed(queue):
    """Closing is asked for again and again until the deployment is gone."""
    await calls.retire(queue.link, queue.keys)

    assert await close(queue) == 0


async def close(queue):
    """Answer what waits, as the controller does for a deleted deployment."""
    return await answer_waiting(queue.link, queue.ring, queue.keys, GONE)
