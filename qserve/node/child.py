"""One replica process as its worker sees it: its start, its control socket, its output, and why it ended."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from qserve.config import Settings
from qserve.spec import Assignment, DeploymentSpec, ReplicaState

logger = logging.getLogger("qserve.worker")

_TAIL_LINES = 50
_LONGEST_LINE = 1024 * 1024
_KILL_GRACE_S = 2.0
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
        """Start the process and give it its assignment."""
        ours, theirs = socket.socketpair()
        env = {**settings.child_env(), "PYTHONUNBUFFERED": "1"}
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "qserve.replica",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                env=env,
                limit=_LONGEST_LINE,
            )
        self.pid = self._process.pid
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_LONGEST_LINE)
        self._tell(assignment=self.assignment.model_dump(), spec=self.spec.model_dump(mode="json"))
        self._life = asyncio.create_task(self._live(reader, self._process), name=f"child-{self.pid}")

    def drain(self, timeout_s: float) -> None:
        """Ask it to finish what runs and leave; it is killed when it does not."""
        if self.state is ReplicaState.STOPPING or self._process is None:
            return
        starting = self.state is ReplicaState.STARTING
        self.state = ReplicaState.STOPPING
        if starting:
            self.kill()
            return
        self._tell(drain=timeout_s)
        self._kill_timer = asyncio.get_running_loop().call_later(timeout_s + _KILL_GRACE_S, self.kill)

    def kill(self) -> None:
        """End it now. Its calls are handed back."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    async def ended(self) -> None:
        """Wait for its end, and for what follows from it."""
        if self._life is not None:
            await asyncio.shield(self._life)

    def _tell(self, **message: Any) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def _live(self, reader: asyncio.StreamReader, process: asyncio.subprocess.Process) -> None:
        output = asyncio.create_task(self._forward(process.stdout))
        listening = asyncio.create_task(self._listen(reader))
        code = await process.wait()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        await listening
        # A grandchild may hold the pipe open; what the replica wrote is here already.
        await asyncio.wait([output], timeout=0.5)
        output.cancel()
        if self._writer is not None:
            self._writer.close()
        if not self.message:
            self.message = self._explain(code)
        await self._on_exit(self)

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

    async def _forward(self, stream: asyncio.StreamReader | None) -> None:
        if stream is None:  # typing only: its output is always piped
            return
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than the limit: skipped by the reader
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip("\n")
            self._tail.append(text)
            sys.stdout.write(f"({self.label} pid={self.pid}) {text}\n")
            sys.stdout.flush()

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
