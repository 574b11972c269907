"""Calls of replicas that are gone: handed back, or answered for good when their attempts are used up."""

from __future__ import annotations

import pytest

from qserve.errors import BrokerUnavailable, CallRejected, ReplicaDiedError
from qserve.store import calls
from qserve.store.calls import MOST_PER_SWEEP
from tests.store.queue import numbers_of


@pytest.mark.leaves(pending=2, records=2, consumers=1)
async def test_a_dead_replica_s_calls_go_to_the_next_one(queue, server):
    """This is the promise: a call outlives the replica that took it."""
    await queue.put(1, 2)
    await queue.claim("r1")
    server.set(queue.keys.lease("r1"), "1", px=60_000)

    assert await queue.reclaimer().all_of("r1", "SIGKILL") == 2

    entries = await queue.claim("r2")
    assert numbers_of(entries) == [1, 2]
    assert [entry.attempt for entry in entries] == [2, 2]


async def test_nothing_is_left_of_a_dead_replica(queue, server):
    """Lease and consumer go with it."""
    await queue.claim("r1")
    server.set(queue.keys.lease("r1"), "1", px=60_000)

    assert await queue.reclaimer().all_of("r1", "SIGKILL") == 0


@pytest.mark.leaves(waiting=2 * MOST_PER_SWEEP + 1, records=2 * MOST_PER_SWEEP + 1)
async def test_more_calls_than_one_sweep_handles_all_go_back(queue):
    """What a replica with many slots held must not be stranded behind the first page."""
    numbers = list(range(2 * MOST_PER_SWEEP + 1))
    await queue.put(*numbers)
    await queue.claim("r1", count=len(numbers))

    assert await queue.reclaimer().all_of("r1", "SIGKILL") == len(numbers)


@pytest.mark.leaves(replies=1, dead=1)
async def test_a_call_whose_attempts_are_used_up_is_answered_and_kept(queue, ear, server):
    """A call that kills every replica must end: with an error that says so, and with its bytes kept for inspection."""
    await queue.put(1)
    for number in range(3):
        await queue.claim(f"r{number}")
        await queue.reclaimer(max_retries=2).all_of(f"r{number}", "SIGSEGV")

    with pytest.raises(ReplicaDiedError, match=r"given up after 3 attempts: .* by SIGSEGV"):
        await queue.answer(1)
    assert len(await ear.heard()) == 1
    assert await queue.claim("r9") == []
    await queue.leave("r9")
    ((_, letter),) = server.xrange(queue.keys.dead)
    assert letter[b"attempts"] == b"3"
    assert letter[b"envelope"] == queue.sealed(1)[1]


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_a_replica_that_lives_on_without_its_lease_dies_once_of_a_call(queue, monkeypatch):
    """Its worker hangs, and it takes at once what goes back: that must not use all attempts up in a moment."""
    await queue.put(1)
    await queue.hand_back("r1", *await queue.claim("r1"), charge=False)
    await queue.claim("r1")
    reclaimer = queue.reclaimer(max_retries=2)
    release = reclaimer.release

    async def release_to_a_waiting_reader(*args, **options):
        await release(*args, **options)
        await queue.claim("r1")

    monkeypatch.setattr(reclaimer, "release", release_to_a_waiting_reader)

    assert await reclaimer.all_of("r1", "the loss of its lease") == 1

    (entry,) = await calls.all_pending(await queue.pipe(), queue.keys.front, "r1")
    assert entry.attempt == 2


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_who_asks_for_calls_is_not_swept(queue):
    """It lives, though nobody renews its lease: what it runs is not given to a second one at every sweep."""
    await queue.put(1)
    await queue.claim("r1")

    assert await queue.reclaimer().abandoned(quiet_s=60.0) == 0
    assert await queue.reclaimer().abandoned(quiet_s=0.0) == 1
    await queue.claim("r2")


@pytest.mark.leaves(waiting=1, records=1)
async def test_drains_never_use_attempts_up(queue):
    """Ten rolling upgrades in a row are no reason to give a long call up."""
    await queue.put(1)
    for number in range(10):
        await queue.claim(f"r{number}")
        await queue.reclaimer(max_retries=0).all_of(f"r{number}", "a drain", charge=False)


@pytest.mark.leaves(waiting=2, records=2, quarantined=2)
async def test_entries_that_cannot_be_read_go_into_quarantine(queue, server):
    """Handed back, they would come again and again; and they must not hold up the calls beside them."""
    await queue.put(1)
    server.xadd(queue.keys.calls, {"c": b"junk"})
    server.xadd(queue.keys.calls, {"other": b"field"})
    await queue.put(2)
    await queue.claim("r1")

    assert await queue.reclaimer().all_of("r1", "SIGKILL") == 4

    assert await queue.lengths() == (2, 0)


@pytest.mark.leaves(replies=1, quarantined=1)
async def test_a_call_of_another_secret_is_refused_when_it_is_given_up(queue, ear, server):
    """Nobody here can read what it calls: it ends in quarantine and its caller is told, and the sweep goes on."""
    envelope = bytearray(queue.sealed(1)[1])
    envelope[-1] ^= 1
    await queue.put(1)
    ((entry_id, _),) = server.xrange(queue.keys.calls)
    server.xdel(queue.keys.calls, entry_id)
    forged = server.xadd(queue.keys.calls, {"c": bytes(envelope)})
    server.set(queue.keys.record((1).to_bytes(16)), b"Qc" + forged)
    await queue.claim("r1")

    await queue.reclaimer(max_retries=0).all_of("r1", "SIGKILL")

    with pytest.raises(CallRejected, match="signature is wrong"):
        await queue.answer(1)
    assert len(await ear.heard()) == 1


@pytest.mark.leaves(pending=1, waiting=2, records=3, leases=1, consumers=1)
async def test_calls_of_a_replica_that_nobody_knows_any_more_are_found(queue, server):
    """Its host was lost while it drained: it stands in no assignment, and its calls would wait for ever."""
    await queue.put(1, 2, 3)
    await queue.claim("lost", count=1)
    await queue.claim("draining", count=1)
    await queue.claim("alive", count=1)
    server.set(queue.keys.lease("alive"), "1", px=60_000)

    assert await queue.reclaimer().abandoned() == 2
    assert await queue.reclaimer().abandoned() == 0

    assert await calls.holders(queue.link, queue.keys) == {"alive": 1}


@pytest.mark.leaves(waiting=1, records=1)
async def test_a_call_that_was_taken_to_be_answered_runs_when_its_deployment_is_back(queue):
    """The controller died between taking and answering, and the application was deployed again: nothing was charged."""
    await queue.put(1)
    await queue.claim(calls.CLOSER)

    assert await queue.reclaimer(max_retries=0).abandoned() == 1


async def test_nobody_is_abandoned_in_a_queue_that_is_gone(queue):
    """It is asked for while deployments come and go."""
    assert await calls.retire(queue.link, queue.keys)

    assert await queue.reclaimer().abandoned() == 0


@pytest.mark.leaves(waiting=1, records=1)
async def test_two_that_reclaim_move_each_call_once(queue):
    """The worker sees its child die while the controller sees the worker's lease lapse."""
    await queue.put(1)
    held = await queue.claim("r1")
    worker, controller = queue.reclaimer(), queue.reclaimer()

    await worker.release(queue.keys.calls, "r1", held, "SIGKILL", charge=True)
    await controller.release(queue.keys.calls, "r1", held, "the loss of its node", charge=True)
    await queue.leave("r1")

    assert await queue.lengths() == (1, 0)


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_a_replica_that_still_lives_and_takes_again_keeps_what_it_took(queue):
    """Its worker was paused and it was declared dead: what it takes after that must not go with its consumer."""
    await queue.put(1)
    await queue.claim("r1")
    await queue.reclaimer().all_of("r1", "the loss of its node")

    assert [entry.attempt for entry in await queue.claim("r1")] == [2]
    await queue.leave()


@pytest.mark.leaves(pending=1, records=1, consumers=1)
async def test_trouble_with_the_server_leaves_the_calls_for_the_next_try(queue):
    """A closed connection in the middle must not look like done."""
    await queue.put(1)
    await queue.claim("r1")
    reclaimer = queue.reclaimer()
    pipe = await queue.pipe()
    pipe.close()

    with pytest.raises(BrokerUnavailable):
        await reclaimer.all_of("r1", "SIGKILL")
    await queue.pipe()
