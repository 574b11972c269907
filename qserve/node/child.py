"""One replica process as its worker sees it: its start, its control socket, its output, and why it ended."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from qserve.config import MAX_CONTROL_BYTES, Settings
from qserve.spec import Assignment, DeploymentSpec, ReplicaState

logger = logging.getLogger("qserve.worker")

_TAIL_LINES = 50
_LONGEST_LINE = 1024 * 1024
_KILL_GRACE_S = 2.0
# What a process wrote before it ended is here by then; a process that it left behind may hold the other end for ever.
_LAST_WORDS_S = 0.5
_OUT_OF_MEMORY = 137


class Child:
    """A replica process. `on_state` hears RUNNING and FAILED from it, `on_exit` its end, each with the child.

    message  the traceback of a start that failed, or why the process ended
    """

    def __init__(
        self,
        assignment: Assignment,
        spec: DeploymentSpec,
        *,
        on_state: Callable[[Child], Awaitable[None]],
        on_exit: Callable[[Child], Awaitable[None]],
    ) -> None:
        self.assignment = assignment
        self.spec = spec
        self.state = ReplicaState.STARTING
        self.message = ""
        self.pid = 0
        self._on_state = on_state
        self._on_exit = on_exit
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._life: asyncio.Task[None] | None = None
        self.has_ended = False
        self._over = asyncio.Event()
        self._kill_timer: asyncio.TimerHandle | None = None

    @property
    def label(self) -> str:
        """How this replica's lines are marked."""
        return f"{self.assignment.deployment}#{self.assignment.replica_id.rpartition('-')[2]}"

    @property
    def is_alive(self) -> bool:
        """Whether the process is there, or about to be."""
        return self._process is None or self._process.returncode is None

    async def start(self, settings: Settings) -> None:
        """Start the process and give it its assignment. Raises OSError."""
        ours, theirs = socket.socketpair()
        # A pipe of our own: asyncio's would hold back the news of the exit until every grandchild has closed it.
        read_end, write_end = os.pipe()
        output = io.FileIO(read_end)
        try:
            with theirs, io.FileIO(write_end, "w") as writes:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "qserve.replica",
                    str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=writes.fileno(),
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                    env={**settings.child_env(), "PYTHONUNBUFFERED": "1"},
                )
        except BaseException:
            ours.close()
            output.close()
            self._over.set()
            raise
        self.pid = self._process.pid
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_CONTROL_BYTES)
        self._tell(assignment=self.assignment.model_dump(), spec=self.spec.model_dump(mode="json"))
        self._life = asyncio.create_task(self._live(reader, output, self._process), name=f"child-{self.pid}")
        if self.state is ReplicaState.STOPPING:  # it was drained while it started
            self.kill()

    def drain(self, timeout_s: float) -> None:
        """Ask it to finish what runs and leave; it is killed when it does not."""
        if self.has_ended or self.state is ReplicaState.STOPPING:
            return
        serves = self.state is ReplicaState.RUNNING
        if self.state is not ReplicaState.FAILED:  # that stays its last word
            self.state = ReplicaState.STOPPING
        if not serves:
            self.kill()
            return
        self._tell(drain=timeout_s)
        self._kill_timer = asyncio.get_running_loop().call_later(timeout_s + _KILL_GRACE_S, self.kill)

    def kill(self) -> None:
        """End it now, and all that it has started. Its calls are handed back."""
        if self._process is not None and self._process.returncode is None:
            self._kill_group()

    async def ended(self) -> None:
        """Wait for its end, and for what follows from it."""
        await self._over.wait()

    def _kill_group(self) -> None:
        """It leads a session: the processes that user code started in it go with it, or they would keep the GPU."""
        with suppress(ProcessLookupError, PermissionError):  # they have ended; macOS refuses when zombies are left
            os.killpg(self.pid, signal.SIGKILL)

    def _tell(self, **message: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def _live(self, reader: asyncio.StreamReader, output: io.FileIO, process: asyncio.subprocess.Process) -> None:
        ears = [asyncio.create_task(self._forward(output)), asyncio.create_task(self._listen(reader))]
        code = await process.wait()
        self.has_ended = True
        self._kill_group()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        await asyncio.wait(ears, timeout=_LAST_WORDS_S)
        for ear in ears:
            ear.cancel()
        if self._writer is not None:
            self._writer.close()
        if not self.message:
            self.message = self._explain(code)
        try:
            await self._on_exit(self)
        finally:
            self._over.set()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if self.state is ReplicaState.STARTING:
                    self.state = ReplicaState(message["state"])
                    self.message = message.get("message", "")
                    await self._on_state(self)
        except (ConnectionError, ValueError) as error:  # it ended in the middle of a line
            logger.info("The control socket of %s broke: %s", self.label, error)

    async def _forward(self, output: io.FileIO) -> None:
        stream = asyncio.StreamReader(limit=_LONGEST_LINE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), output
        )
        try:
            while True:
                try:
                    line = await stream.readline()
                except ValueError:  # longer than the limit: skipped by the reader
                    continue
                if not line:
                    return
                text = line.decode(errors="replace").rstrip("\n")
                self._tail.append(text)
                _print(f"({self.label} pid={self.pid}) {text}\n".encode())
        finally:
            transport.close()

    def _explain(self, code: int) -> str:
        if self.state is ReplicaState.STOPPING and code == 0:
            return ""
        if code in (-signal.SIGKILL, _OUT_OF_MEMORY):
            cause = "SIGKILL: by hand, or by the kernel because the host or its cgroup was out of memory"
        elif code < 0:
            cause = signal.Signals(-code).name
        else:
            cause = f"exit code {code}"
        tail = "\n".join(self._tail)
        return f"The replica process {self.pid} ended by {cause}." + (f" Its last output:\n{tail}" if tail else "")


def _print(line: bytes) -> None:
    """Show a line. It must be read off the replica even when nobody reads it here (`qserve worker | head`)."""
    with suppress(OSError, ValueError):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
