"""Hosts for a test: network namespaces on a switch of their own, each with an address and a cable to pull.

Nothing outside of them is touched. It takes Linux and the right to make namespaces: `why_not()` says what is missing.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from functools import cache
from types import TracebackType
from typing import Self

_NETWORK = "10.213.7"
_IP = shutil.which("ip") or "ip"


@cache
def why_not() -> str:
    """Why no hosts can be made here; empty when they can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "network namespaces need Linux and the program `ip` (package iproute2)"
    try:
        with Network():
            return ""
    except subprocess.CalledProcessError as error:
        return f"network namespaces may not be made here: {' '.join(error.cmd)}: {error.stderr.strip()}"


class Host:
    """One namespace. `start()` runs a process in it; all of them end with the network."""

    def __init__(self, switch: str, name: str, number: int) -> None:
        self.name = name
        self.address = f"{_NETWORK}.{number}"
        self.processes: list[subprocess.Popen[str]] = []
        self._switch = switch
        self._port = f"p{number}"

    def plug_in(self) -> None:
        """Make the namespace and its cable to the switch."""
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        peer = ("peer", "name", "eth0", "netns", self.name)
        _ip("-n", self._switch, "link", "add", self._port, "type", "veth", *peer)
        _ip("-n", self._switch, "link", "set", self._port, "master", "switch", "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.name, "link", "set", "eth0", "up")

    def cut(self) -> None:
        """Pull the cable: packets vanish, connections stay open and silent."""
        _ip("-n", self._switch, "link", "set", self._port, "nomaster")

    def heal(self) -> None:
        """Plug the cable in again."""
        _ip("-n", self._switch, "link", "set", self._port, "master", "switch")

    def start(self, *command: str, env: dict[str, str], talks: bool) -> subprocess.Popen[str]:
        """A process on this host.

        talks  it reads lines from us and writes lines to us; else nobody hears it
        """
        process = subprocess.Popen(
            [_IP, "netns", "exec", self.name, *command],
            env=env,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else subprocess.DEVNULL,
            text=True,
        )
        self.processes.append(process)
        return process

    def shut_down(self) -> None:
        """End its processes, in order first."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


class Network:
    """A switch and the hosts on it; gone with the `with` block, whatever happened in it."""

    def __init__(self, *names: str) -> None:
        mark = f"qs{os.getpid() % 100_000}-{secrets.token_hex(2)}"
        self._switch = f"{mark}-switch"
        self._hosts = {name: Host(self._switch, f"{mark}-{name}", number) for number, name in enumerate(names, start=1)}

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "switch", "up")
            for host in self._hosts.values():
                host.plug_in()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self._hosts.values():
            host.heal()
        # Those that were started last are those that use the others.
        for host in reversed(self._hosts.values()):
            host.shut_down()
        self._remove()

    def _remove(self) -> None:
        for name in (*(host.name for host in self._hosts.values()), self._switch):
            subprocess.run([_IP, "netns", "del", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run([_IP, *arguments], capture_output=True, text=True, check=True)
