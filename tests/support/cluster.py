"""A cluster of real processes for a test: workers and autoscalers that can be killed, and events to wait for."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

import qserve as serve
from qserve.client import portal
from qserve.config import Settings

ROOT = Path(__file__).parents[2]
SECRET = b"tests-sign-with-this-key-0123456789"


@contextmanager
def namespace_on(broker_url: str) -> Iterator[Settings]:
    """Signed settings in a namespace of one's own, which this process uses until the block ends."""
    chosen = Settings(redis_url=broker_url, namespace=f"t{secrets.token_hex(4)}", secrets=(SECRET,))
    portal.use(chosen)
    try:
        yield chosen
    finally:
        portal.use(None)


def eventually(check: Callable[[], object], *, within_s: float = 15.0, what: str = "") -> None:
    """Wait until `check()` is true; it is asked every 20 ms. Fails with `what` after `within_s`."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what or check}"
        time.sleep(0.02)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Cluster:
    """Processes of one namespace on one broker. All of them end with `stop()`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workers: list[subprocess.Popen[bytes]] = []
        self.autoscalers: list[subprocess.Popen[bytes]] = []

    def start_worker(self, settings: Settings | None = None) -> subprocess.Popen[bytes]:
        """One more worker process."""
        process = self._start("qserve.node", settings)
        self.workers.append(process)
        return process

    def start_autoscaler(self, settings: Settings | None = None) -> subprocess.Popen[bytes]:
        """One more autoscaler process."""
        process = self._start("qserve.controller", settings)
        self.autoscalers.append(process)
        return process

    def replica_pids(self) -> list[int]:
        """Pids of the replica processes of all workers."""
        pids = []
        for worker in self.workers:
            if worker.poll() is None:
                pids += [child.pid for child in psutil.Process(worker.pid).children() if is_replica(child)]
        return pids

    def kill(self, process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process of this cluster and, for SIGKILL, wait for its end."""
        process.send_signal(how)
        if how is signal.SIGKILL:
            process.wait()

    def stop(self) -> None:
        """Take the applications down and end all processes, by force if need be."""
        leads = any(process.poll() is None for process in self.autoscalers)
        try:
            if leads:
                serve.shutdown(timeout_s=30)
        finally:
            for process in (*self.workers, *self.autoscalers):
                self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, module: str, settings: Settings | None) -> subprocess.Popen[bytes]:
        env = (settings or self.settings).child_env()
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
        return subprocess.Popen([sys.executable, "-m", module], env=env, stdin=subprocess.DEVNULL)


@contextmanager
def cluster_in(settings: Settings) -> Iterator[Cluster]:
    """An autoscaler and a worker as processes, until the block ends."""
    running = Cluster(settings)
    try:
        running.start_autoscaler()
        running.start_worker()
        yield running
    finally:
        running.stop()


def is_replica(process: psutil.Process) -> bool:
    """Whether a process is a replica."""
    try:
        return "qserve.replica" in process.cmdline()
    except psutil.Error:
        return False
