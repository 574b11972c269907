"""How replicas end: each cause is told apart, and one that was asked to leave runs its `__del__` once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import qserve as serve
from qserve.spec import ExitCause, ReplicaState
from tests.store.until import until
from tests.support.cluster import Cluster


@serve.deployment(graceful_shutdown_timeout_s=5.0)
class Mortal:
    """Notes what happens to it in a file."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def note(self, text: str) -> None:
        with self._notes.open("a") as file:
            file.write(text)

    def leave(self, code: int) -> None:
        sys.stdout.write("these were its last words\n")
        os._exit(code)

    def hold(self, mebibytes: int) -> int:
        self.held = b"x" * mebibytes * 1024 * 1024
        return len(self.held)

    def __del__(self) -> None:
        self.note("deleted ")


@serve.deployment(graceful_shutdown_timeout_s=5.0)
class StartsForEver:
    """Its constructor does not end; a coroutine can be told to."""

    async def __init__(self, notes: Path) -> None:  # type: ignore[misc]  # Ray Serve allows a coroutine here, and so do we
        self._notes = notes
        self.note("begun ")
        await asyncio.sleep(600)

    def note(self, text: str) -> None:
        with self._notes.open("a") as file:
            file.write(text)

    async def __del__(self) -> None:
        self.note("deleted ")


@serve.deployment
class NeverStarts:
    """Ends in its constructor, as it is told."""

    def __init__(self, how: str) -> None:
        if how == "raises":
            raise RuntimeError("there is no model file")
        if how == "leaves":
            sys.exit("no licence")
        os.kill(os.getpid(), signal.SIGSEGV)


@serve.deployment(max_calls_per_replica=3, max_ongoing_requests=1)
class ShortLived:
    """Is replaced after three calls."""

    def __call__(self) -> int:
        return os.getpid()


async def test_an_exit_code_is_told_with_the_last_output(leader, tmp_path):
    """Native libraries print why, and exit."""
    replica = await leader.host(Mortal.bind(tmp_path / "notes"))
    leader.handle("Mortal").leave.remote(7)

    died = await leader.shows(replica, ReplicaState.DIED)
    assert died.cause is ExitCause.EXIT_CODE
    assert "ended by exit code 7" in died.message
    assert "these were its last words" in died.message


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
async def test_a_signal_is_told_by_its_name(leader, tmp_path, name):
    """A crash in native code is another matter than somebody's kill."""
    replica = await leader.host(Mortal.bind(tmp_path / "notes"))
    os.kill((await leader.record(replica)).pid, signal.Signals[name])

    died = await leader.shows(replica, ReplicaState.DIED)
    assert died.cause is ExitCause.SIGNAL
    assert name in died.message


@pytest.mark.parametrize(
    ("how", "cause", "says"),
    [
        ("raises", ExitCause.START, "RuntimeError: there is no model file"),
        ("leaves", ExitCause.START, "SystemExit: no licence"),
        ("crashes", ExitCause.SIGNAL, "SIGSEGV"),
    ],
)
async def test_a_start_that_fails_says_what_its_constructor_did(leader, how, cause, says):
    """It is what `serve.run` prints: nobody looks for a log."""
    replica = await leader.assign(await leader.deploy(NeverStarts.bind(how)))
    failed = await leader.shows(replica, ReplicaState.FAILED, ReplicaState.DIED)
    assert (failed.state, failed.cause) == (ReplicaState.FAILED, cause)
    assert says in failed.message
    assert "Python" not in failed.message


async def test_an_error_of_any_length_and_of_any_bytes_is_told(leader):
    """An exception may carry a file's name or a whole table; a worker that chokes on it shows nothing at all."""

    @serve.deployment
    class Verbose:
        def __init__(self) -> None:
            raise RuntimeError("x" * 20_000_000 + " in \udcff.bin")

    replica = await leader.assign(await leader.deploy(Verbose.bind()))
    failed = await leader.shows(replica, ReplicaState.FAILED)
    assert failed.message.endswith("x in \\udcff.bin\n")


async def test_code_of_another_python_says_so_when_it_fails(leader):
    """Bytecode of another minor version crashes anywhere, with an error that names nothing of the kind."""
    spec = await leader.deploy(NeverStarts.bind("crashes"))
    app = await leader.state.app(spec.app)
    strange = spec.model_copy(update={"python": "3.9.1"})
    await leader.state.deploy(app.model_copy(update={"deployments": (strange,)}), {})

    failed = await leader.shows(await leader.assign(strange), ReplicaState.FAILED)
    assert "deployed by Python 3.9.1, and this worker runs" in failed.message


async def test_del_runs_once_when_a_replica_is_asked_to_leave(leader, tmp_path):
    """It gives back what the class has taken: connections, temporary files, a place in a registry."""
    notes = tmp_path / "notes"
    replica = await leader.host(Mortal.bind(notes))
    await leader.handle("Mortal").note.remote("called ")
    asked_at = time.monotonic()
    await leader.unassign(replica)
    await leader.has_left(replica)

    assert notes.read_text() == "called deleted "
    # `graceful_shutdown_wait_loop_s` is 2 s: nobody waits for a replica that is idle.
    assert time.monotonic() - asked_at < 1.5


async def test_del_runs_once_for_a_replica_that_is_deleted_while_it_starts(leader, tmp_path):
    """It may have taken something already."""
    notes = tmp_path / "notes"
    replica = await leader.assign(await leader.deploy(StartsForEver.bind(notes)))
    await until(notes.exists, within_s=15)
    await leader.unassign(replica)
    await leader.has_left(replica)

    assert notes.read_text() == "begun deleted "


async def test_a_constructor_that_hears_nobody_is_ended_all_the_same(leader, tmp_path):
    """A download in a blocking constructor must not keep a deleted application."""
    begun = tmp_path / "begun"

    @serve.deployment
    class Deaf:
        def __init__(self) -> None:
            begun.touch()
            time.sleep(600)

    replica = await leader.assign(await leader.deploy(Deaf.bind()))
    await until(begun.exists, within_s=15)
    await leader.unassign(replica)
    await leader.has_left(replica, within_s=5)


async def test_a_replica_that_has_answered_enough_asks_for_a_replacement_and_serves_on(leader):
    """For libraries that leak: memory comes back only with a new process."""
    replica = await leader.host(ShortLived.bind())
    handle = leader.handle("ShortLived")
    pids = [await handle.remote() for _ in range(3)]
    record = await leader.finds(replica, lambda record: record.retiring)

    assert record.retiring == "it has answered 3 calls (max_calls_per_replica=3)"
    assert record.state is ReplicaState.RUNNING
    pids += [await handle.remote() for _ in range(5)]
    assert set(pids) == {record.pid}
    assert await leader.record(replica) == record


async def test_a_replica_that_has_grown_asks_for_a_replacement_and_serves_on(leader, tmp_path):
    """Measured from outside, so that it also holds for memory that Python does not know of."""
    app = Mortal.options(max_replica_rss=200 * 1024 * 1024).bind(tmp_path / "notes")
    replica = await leader.host(app)
    before = await leader.record(replica)
    assert before.retiring == ""
    await leader.handle("Mortal").hold.remote(256)

    record = await leader.finds(replica, lambda record: record.retiring, within_s=10)
    assert "max_replica_rss=209715200" in record.retiring
    assert record.serves


async def test_memory_that_runs_out_is_the_cause(leader, limited_worker, tmp_path):
    """The kernel kills with the signal of anybody's kill: this one asks for another host, or a smaller batch."""
    leader.node_id = limited_worker
    replica = await leader.host(Mortal.bind(tmp_path / "notes"))
    leader.handle("Mortal").hold.remote(1024)

    died = await leader.shows(replica, ReplicaState.DIED)
    assert died.cause is ExitCause.OUT_OF_MEMORY
    assert "the kernel killed it" in died.message


@pytest.fixture
async def limited_worker(leader, settings) -> AsyncIterator[str]:
    """The node id of a worker process in a control group of 300 MiB."""
    group = new_group(300 * 1024 * 1024)
    running = Cluster(settings)
    try:
        worker = running.start_worker()
        (group / "cgroup.procs").write_text(str(worker.pid))
        yield await leader.node_of(worker.pid)
    finally:
        running.stop()
        group.rmdir()


def new_group(limit_bytes: int) -> Path:
    """A control group with that limit. Skips the test where none may be made."""
    root = Path("/sys/fs/cgroup")
    older = root / "memory"
    group = (older if older.is_dir() else root) / f"qserve-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group may be made here: {error}")
    try:
        (group / ("memory.limit_in_bytes" if older.is_dir() else "memory.max")).write_text(str(limit_bytes))
    except OSError as error:
        group.rmdir()
        pytest.skip(f"no control group of limited memory may be made here: {error}")
    return group
