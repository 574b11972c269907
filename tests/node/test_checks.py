"""Health checks of real replicas: who is sick leaves, says why, and takes no call along."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import qserve as serve
from qserve.spec import ExitCause, ReplicaState
from tests.store.until import until

QUICK: dict[str, Any] = {
    "health_check_period_s": 0.05,
    "health_check_timeout_s": 0.3,
    "graceful_shutdown_timeout_s": 0.2,
}


class Checked:
    """Is sick as long as the file is there."""

    def __init__(self, illness: Path) -> None:
        self._illness = illness

    def check_health(self) -> None:
        if self._illness.exists():
            raise RuntimeError(self._illness.read_text())


@serve.deployment(**QUICK | {"graceful_shutdown_timeout_s": 10.0})
class Inheriting(Checked):
    """Its check is its parent's."""

    def wait_for(self, path: str) -> str:
        Path(path).with_name("begun").touch()
        while not Path(path).exists():
            time.sleep(0.005)
        return "finished"


@serve.deployment(**QUICK)
class Counting:
    """Counts how often it is checked, asynchronously."""

    def __init__(self) -> None:
        self._checks = 0

    async def check_health(self) -> None:
        self._checks += 1

    def checks(self) -> int:
        return self._checks

    def more_than(self, number: int) -> int:
        while self._checks <= number:
            time.sleep(0.005)
        return self._checks


@serve.deployment(max_ongoing_requests=1, **QUICK)
class Slow:
    """Its only thread is busy while it is checked, and the check takes a while."""

    def __init__(self) -> None:
        self._inside = 0
        self.most = 0
        self.release = False

    async def check_health(self) -> None:
        self._inside += 1
        self.most = max(self.most, self._inside)
        await asyncio.sleep(0.1)
        self._inside -= 1

    async def highest(self) -> int:
        return self.most


@serve.deployment(**QUICK)
class Blocking:
    """Blocks its own event loop the first time."""

    def _blocks(self, path: str) -> None:
        Path(path).touch()
        signal.pause()

    async def block(self, path: str) -> int:
        from qserve.context import current_call

        context = current_call.get()
        assert context is not None
        if context.attempt == 1:
            self._blocks(path)
        return context.attempt


@pytest.mark.parametrize("kind", ["raises", "hangs"])
async def test_a_replica_must_pass_its_first_check_to_run(leader, tmp_path, kind):
    """Its own check knows better than the constructor whether it can serve."""

    @serve.deployment(**QUICK)
    class NeverWell:
        async def check_health(self) -> None:
            if kind == "hangs":
                await asyncio.sleep(600)
            raise RuntimeError("no database")

    replica = await leader.assign(await leader.deploy(NeverWell.bind()))
    record = await leader.shows(replica, ReplicaState.FAILED)

    assert record.cause is ExitCause.START
    assert ("no database" if kind == "raises" else "check_health() had not ended after 0.3 s") in record.message
    assert all(seen.state is not ReplicaState.RUNNING for seen in leader.seen[replica])


async def test_a_sick_replica_finishes_its_calls_and_leaves(leader, tmp_path):
    """It is shown as stopping with its cause, so that a replacement starts at once; then as died, with the error."""
    illness, gate = tmp_path / "illness", tmp_path / "gate"
    replica = await leader.host(Inheriting.bind(illness))
    response = leader.handle("Inheriting").wait_for.remote(str(gate))
    await until(tmp_path.joinpath("begun").exists)
    illness.write_text("the cache is full")

    stopping = await leader.shows(replica, ReplicaState.STOPPING)
    assert stopping.cause is ExitCause.HEALTH_CHECK
    gate.touch()
    assert await response == "finished"
    died = await leader.shows(replica, ReplicaState.DIED)
    assert died.cause is ExitCause.HEALTH_CHECK
    assert "the cache is full" in died.message


async def test_a_replica_that_answers_nothing_is_killed_and_its_calls_run_again(leader, tmp_path):
    """A wedged process holds its calls for ever: somebody must take them from it, and count the attempt."""
    replica = await leader.host(Blocking.bind())
    response = leader.handle("Blocking").block.remote(str(tmp_path / "blocked"))
    await until((tmp_path / "blocked").exists)

    died = await leader.shows(replica, ReplicaState.DIED)
    assert died.cause is ExitCause.HEALTH_CHECK
    assert "had not ended after 0.3 s" in died.message
    await leader.assign(leader.specs["Blocking"])
    assert await response == 2


async def test_a_stopped_process_is_found(leader):
    """SIGSTOP, a debugger, a frozen container: alive for the kernel, of no use to anybody."""
    replica = await leader.host(Counting.bind())
    record = await leader.record(replica)
    os.kill(record.pid, signal.SIGSTOP)

    assert (await leader.shows(replica, ReplicaState.DIED)).cause is ExitCause.HEALTH_CHECK


async def test_a_well_replica_is_checked_again_and_again(leader):
    """Three failures are counted only where somebody asks."""
    await leader.host(Counting.bind())
    handle = leader.handle("Counting")
    before = await handle.checks.remote()
    assert await handle.more_than.remote(before + 5) > before + 5


async def test_a_check_is_never_under_way_twice(leader):
    """A slow check would be doubled until the replica does nothing else."""
    await leader.host(Slow.bind())
    highest = []
    for _ in range(20):
        highest.append(await leader.handle("Slow").highest.remote())
        await asyncio.sleep(0.02)
    assert max(highest) == 1
