"""The file that probes look at: fresh while the event loop turns, and its word says whether the process is of use."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from qserve.doors import keep_running
from qserve.errors import SettingsError
from qserve.generate.stack import HEARTBEAT_FILE, is_alive, is_ready
from tests.support.cluster import eventually

QSERVE = str(Path(sysconfig.get_path("scripts")) / "qserve")


def probe(test: str, file: Path) -> bool:
    """What Kubernetes or Docker finds out, with the very command of the generated files."""
    command = ["sh", "-c", test.replace(HEARTBEAT_FILE, str(file))]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Work:
    """A process's work that becomes ready when it is told, and drains when it is told."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.ready = False
        self.may_leave = asyncio.Event()
        self.ended = asyncio.Event()

    async def run(self) -> None:
        await self.ended.wait()

    async def drain(self) -> None:
        await self.may_leave.wait()
        self.ended.set()

    async def word(self, wanted: str) -> None:
        """Wait until the file says so."""
        async with asyncio.timeout(10):
            while not probe(f"grep -q {wanted} {self.file}", self.file):  # noqa: ASYNC110 (a file tells nobody)
                await asyncio.sleep(0.02)


async def test_the_file_tells_the_life_of_a_process(tmp_path):
    """A pod that drains gets no new work and is not killed for it; what has ended leaves nothing that looks alive."""
    work = Work(tmp_path / "beat")
    running = asyncio.create_task(
        keep_running(work.run(), work.drain, heartbeat_file=str(work.file), is_ready=lambda: work.ready)
    )
    await work.word("starting")
    assert not probe(is_ready(), work.file)
    work.ready = True
    await work.word("ready")
    assert probe(is_ready(), work.file)
    os.kill(os.getpid(), signal.SIGTERM)
    await work.word("draining")
    assert not probe(is_ready(), work.file)
    assert probe(is_alive(), work.file)
    work.may_leave.set()
    assert await running == 0
    assert list(tmp_path.iterdir()) == []


async def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path):
    """Later it would be a pod that is restarted every half minute, and nobody knows why."""
    work = Work(tmp_path / "missing" / "beat")
    with pytest.raises(SettingsError, match="--heartbeat-file"):
        await keep_running(work.run(), work.drain, heartbeat_file=str(work.file))


async def test_a_file_that_is_lost_comes_back(tmp_path):
    """Somebody cleans /tmp: a healthy process must not be killed for it."""
    work = Work(tmp_path / "beat")
    running = asyncio.create_task(keep_running(work.run(), work.drain, heartbeat_file=str(work.file)))
    await work.word("ready")
    work.file.unlink()
    await work.word("ready")
    work.may_leave.set()
    work.ended.set()
    assert await running == 0


def test_an_old_file_is_a_hung_process(tmp_path):
    """Its pid is still there: only the age tells."""
    file = tmp_path / "beat"
    file.write_text("ready\n")
    assert probe(is_alive(), file)
    os.utime(file, (time.time() - 31, time.time() - 31))
    assert not probe(is_alive(), file)
    assert not probe(is_alive(), tmp_path / "missing")


@pytest.mark.slow
@pytest.mark.parametrize("role", ["worker", "autoscaler"])
def test_a_process_of_ours_is_ready_once_it_has_joined(role, settings, tmp_path):
    """Replicas that start from it must not inherit the file: theirs would keep a hung worker alive."""
    file = tmp_path / "beat"
    process = subprocess.Popen(
        [QSERVE, role, "--heartbeat-file", str(file)], env=settings.child_env(), stdin=subprocess.DEVNULL
    )
    try:
        eventually(lambda: probe(is_ready(), file), within_s=20, what="it is ready")
        assert probe(is_alive(), file)
        assert str(file) not in "".join(settings.child_env().values())
        process.terminate()
        assert process.wait(20) == 0
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.wait()
