"""What user code starts and prints: processes of its own, signals to them, and more output than anybody reads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import qserve as serve
from tests.support.cluster import ROOT, Cluster, eventually

KIB = 1024


@serve.deployment
class Forker:
    """Its first call forks a process that outlasts it and never returns; later ones answer at once."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def work(self) -> str:
        if not self._path.exists():
            child = os.fork()
            if child:
                self._path.with_suffix(".new").write_text(f"{os.getpid()} {child}")
                self._path.with_suffix(".new").rename(self._path)
            time.sleep(600)
        return "done"


@serve.deployment
class Parent:
    """Starts processes and ends them again, as libraries do."""

    def __init__(self) -> None:
        self._config = ""

    def reconfigure(self, config: str) -> None:
        self._config = config

    def config_size(self) -> int:
        return len(self._config)

    def terminates(self, how: str) -> int | None:
        if how == "exec":
            child = subprocess.Popen(["/bin/sleep", "600"])
            child.terminate()
            return child.wait(timeout=3)
        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        forked.start()
        forked.terminate()
        forked.join(3)
        return forked.exitcode

    def says(self, lines: int) -> int:
        for _ in range(lines):
            sys.stdout.write("x" * KIB + "\n")
        return lines


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def on_either_loop(request, settings) -> Iterator[Cluster]:
    """A cluster on uvloop, then one on asyncio's loop: they tell of a process's end in different ways."""
    running = Cluster(replace(settings, uvloop=request.param))
    running.start_autoscaler()
    running.start_worker()
    yield running
    running.stop()


def test_a_process_that_user_code_forked_holds_up_nobody(on_either_loop, tmp_path):
    """It shares the dead replica's sockets and pipes: its calls must be handed back all the same, and it must end."""
    handle = serve.run(Forker.bind(str(tmp_path / "pids")))
    response = handle.work.remote()
    eventually((tmp_path / "pids").exists)
    replica, grandchild = map(int, (tmp_path / "pids").read_text().split())

    killed_at = time.monotonic()
    os.kill(replica, signal.SIGKILL)
    assert response.result(timeout_s=10) == "done"
    assert time.monotonic() - killed_at < 3
    eventually(lambda: has_ended(grandchild), within_s=2)


@pytest.mark.parametrize("how", ["exec", "fork"])
def test_user_code_can_end_its_own_processes(cluster, how):
    """A replica leaves TERM to its worker; its own children must hear it as any process does."""
    handle = serve.run(Parent.bind())

    assert handle.terminates.remote(how).result(timeout_s=10) == -signal.SIGTERM


def test_a_large_user_config_reaches_the_replica(cluster):
    """It travels in one line, and lines have a limit: 64 KiB unless somebody thinks of it."""
    handle = serve.run(Parent.options(user_config="x" * 200 * KIB).bind())

    assert handle.config_size.remote().result(timeout_s=10) == 200 * KIB


def test_a_worker_whose_output_nobody_reads_serves_on(settings):
    """`qserve worker | head` closes its pipe after ten lines: replicas that print must not block on it."""
    running = Cluster(settings)
    running.start_autoscaler()
    env = {**settings.child_env(), "PYTHONPATH": str(ROOT)}
    worker = subprocess.Popen([sys.executable, "-m", "qserve.node"], env=env, stdout=subprocess.PIPE)
    running.workers.append(worker)
    assert worker.stdout is not None
    worker.stdout.close()
    try:
        assert serve.run(Parent.bind()).says.remote(500).result(timeout_s=10) == 500
    finally:
        running.stop()


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for its new parent to notice."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
