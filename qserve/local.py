"""The embedded cluster of one script: broker, worker and autoscaler as children that end with it, however it ends."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qserve.client import portal
from qserve.config import Settings
from qserve.doors import LEAVE, OWNED
from qserve.store.embedded import EmbeddedBroker, ephemeral_secret, private_folder

_LEAVE_TIMEOUT_S = 30.0
_lock = threading.Lock()
_cluster: LocalCluster | None = None


def ensure() -> None:
    """Start this process's embedded cluster, once, if no other is configured."""
    global _cluster  # noqa: PLW0603 (a process has one embedded cluster)
    with _lock:
        chosen = portal.settings()
        if chosen.redis_url is not None:
            return
        cluster = LocalCluster(chosen)
        cluster.start()
        _cluster = cluster
        atexit.register(end)
        portal.use(cluster.settings)


def end(*, at_once: bool = False) -> None:
    """End the embedded cluster, if this process has one: our connections first, then its processes."""
    global _cluster
    with _lock:
        cluster, _cluster = _cluster, None
    if cluster is not None:
        atexit.unregister(end)
        portal.use(None)
        cluster.stop(at_once=at_once)


def write_env_file() -> Path | None:
    """A file, readable by its owner only, from which a shell reaches this process's embedded cluster; None without one.

    It goes with the cluster.
    """
    return None if _cluster is None else _cluster.write_env_file()


class LocalCluster:
    """Broker, worker and autoscaler. `start()` returns when the broker answers; the others join by themselves."""

    def __init__(self, settings: Settings) -> None:
        self._broker = EmbeddedBroker(settings, private_folder(), keep=False)
        secrets = settings.secrets or (ephemeral_secret(),)
        self.settings = replace(settings, redis_url=self._broker.url, secrets=secrets)
        self._children: list[subprocess.Popen[bytes]] = []
        self._owner = os.getpid()

    def start(self) -> None:
        """Start everything. Raises BrokerBinaryMissing, BrokerUnavailable."""
        self._broker.start()
        os.register_at_fork(after_in_child=self._let_go)
        # They take longer to import than the broker to start: all three start at once.
        self._children = [self._spawn("qserve.controller"), self._spawn("qserve.node")]
        try:
            self._broker.wait_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self, *, at_once: bool = False) -> None:
        """End all children and remove the folder. Safe to call twice; idle in a forked child.

        at_once  do not let the replicas finish what they run
        """
        if self._owner != os.getpid():
            return
        children, self._children = self._children, []
        for child in children:
            _ask_to_leave(child)
        try:
            for child in children:
                child.wait(0 if at_once else _LEAVE_TIMEOUT_S)
        except BaseException as error:  # too slow, or a second Ctrl-C
            for child in children:
                child.kill()
                child.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            for child in children:
                _close_stdin(child)
            self._broker.stop()

    def write_env_file(self) -> Path:
        """A file in the cluster's folder, for its owner only, that turns another terminal to this cluster."""
        path = self._broker.folder / "env"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(self.settings.shell_exports(with_secrets=True))
        return path

    def _spawn(self, module: str) -> subprocess.Popen[bytes]:
        env = self.settings.child_env()
        env["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        return subprocess.Popen(
            [sys.executable, "-m", module, OWNED],
            stdin=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )

    def _let_go(self) -> None:
        self._broker.let_go()
        children, self._children = self._children, []
        for child in children:
            _close_stdin(child)


def _ask_to_leave(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # it has left already
        child.stdin.write(LEAVE)
        child.stdin.flush()


def _close_stdin(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # what it was asked was not read
        child.stdin.close()
