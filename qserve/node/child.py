"""One replica process as its worker sees it: its start, its control socket, its health, its output, and its end."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any

from qserve.config import MAX_CONTROL_BYTES, VISIBLE_DEVICES, Settings
from qserve.node.exits import MemoryKills, explain, versions_differ
from qserve.node.health import Health
from qserve.spec import Assignment, DeploymentSpec, ExitCause, ReplicaState

logger = logging.getLogger("qserve.worker")

_TAIL_LINES = 50
_LONGEST_LINE = 1024 * 1024
# Lines that are here already are read without a pause: after so many it is the turn of all else that the worker does.
_LINES_AT_ONCE = 50
_KILL_GRACE_S = 2.0
# One that has not begun to serve holds no calls: it may end in order if its loop is free, and nobody waits long for it.
_START_GRACE_S = 1.0
# What a process wrote before it ended is here by then; a process that it left behind may hold the other end for ever.
_LAST_WORDS_S = 0.5
_SERVING = (ReplicaState.RUNNING, ReplicaState.UPDATING)


class Child:
    """A replica process. `on_change` hears of each change that others must see, `on_exit` of its end.

    `on_line` gets each line that it writes, with its assignment and its pid.

    gpus      the devices that it may see; None leaves to it what this process sees
    message   the traceback of a start that failed, or why the process ended
    cause     what ended it, or will, although nobody asked for it
    retiring  why it is to be replaced, while it serves on
    """

    def __init__(
        self,
        assignment: Assignment,
        spec: DeploymentSpec,
        *,
        on_change: Callable[[Child], None],
        on_exit: Callable[[Child], Awaitable[None]],
        on_line: Callable[[Assignment, int, str], None],
        kills: MemoryKills,
        gpus: tuple[str, ...] | None = None,
    ) -> None:
        self.assignment = assignment
        self.spec = spec
        self.gpus = gpus
        self.state = ReplicaState.STARTING
        self.message = ""
        self.cause: ExitCause | None = None
        self.retiring = ""
        self.pid = 0
        self.started_at_s = 0.0
        self._on_change = on_change
        self._on_exit = on_exit
        self._on_line = on_line
        self._kills = kills
        self._health = Health(lambda number: self._tell(check=number), self._sick)
        self._next: DeploymentSpec | None = None  # what it is being reconfigured to
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

    @property
    def serves(self) -> bool:
        """Whether it takes calls."""
        return self.state in _SERVING

    @property
    def was_asked(self) -> bool:
        """Whether its end is what somebody asked for."""
        return self.state is ReplicaState.STOPPING and self.cause is None

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
                    env=self._environment(settings),
                )
        except BaseException:
            ours.close()
            output.close()
            self._over.set()
            raise
        self.pid = self._process.pid
        self.started_at_s = time.time()
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_CONTROL_BYTES)
        self._tell(assignment=self.assignment.model_dump(), spec=self.spec.model_dump(mode="json"))
        self._life = asyncio.create_task(self._live(reader, output, self._process), name=f"child-{self.pid}")
        if self.state is ReplicaState.STOPPING:  # it was drained while it started
            self.kill()

    def drain(self, timeout_s: float) -> None:
        """Ask it to finish what runs and leave; it is killed when it does not."""
        if self.has_ended or self.state is ReplicaState.STOPPING:
            return
        self._health.stop()
        if self.state is ReplicaState.FAILED:  # that stays its last word
            self.kill()
            return
        allowed_s, grace_s = (timeout_s, _KILL_GRACE_S) if self.serves else (0.0, _START_GRACE_S)
        self.state = ReplicaState.STOPPING
        self._tell(drain=allowed_s)
        self._kill_timer = asyncio.get_running_loop().call_later(allowed_s + grace_s, self.kill)

    def give_up(self, cause: ExitCause, message: str) -> None:
        """It cannot go on, though its process does: have it finish what runs and leave. Its record will say why."""
        if self.serves:
            self.cause, self.message = cause, message
            self.drain(self.spec.config.graceful_shutdown_timeout_s)
            self._on_change(self)

    def reconfigure(self, assignment: Assignment, spec: DeploymentSpec) -> None:
        """Have a running replica take over another configuration, while it serves on."""
        self.assignment, self._next = assignment, spec
        self.state = ReplicaState.UPDATING
        self._tell(reconfigure=spec.model_dump(mode="json"))
        self._on_change(self)

    def retire(self, why: str) -> None:
        """It wants a replacement, and serves until it is unassigned. Only the first reason is told."""
        if not self.retiring and self.serves:
            self.retiring = why
            logger.info("%s is to be replaced: %s", self.label, why)
            self._on_change(self)

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
        self._health.stop()
        self._kill_group()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        await asyncio.wait(ears, timeout=_LAST_WORDS_S)
        for ear in ears:
            ear.cancel()
        if self._writer is not None:
            self._writer.close()
        self._note_end(code)
        try:
            await self._on_exit(self)
        finally:
            self._over.set()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._hear(json.loads(line))
        except (ConnectionError, ValueError) as error:  # it ended in the middle of a line
            logger.info("The control socket of %s broke: %s", self.label, error)

    def _hear(self, message: dict[str, Any]) -> None:
        if "checked" in message:
            self._health.answered(message["checked"], message["message"])
        elif "configured" in message:
            self._configured(message["message"])
        elif "retire" in message:
            self.retire(message["retire"])
        elif self.state is ReplicaState.STARTING:
            self._started(ReplicaState(message["state"]), message.get("message", ""))

    def _started(self, state: ReplicaState, message: str) -> None:
        self.state = state
        if state is ReplicaState.RUNNING:
            self._watch_health()
        else:
            self.cause, self.message = ExitCause.START, message + versions_differ(self.spec.python)
        self._on_change(self)

    def _configured(self, error: str) -> None:
        if self.state is not ReplicaState.UPDATING or self._next is None:  # it is on its way out
            return
        if error:
            self.give_up(ExitCause.START, f"It could not take over its new configuration:\n{error}")
            return
        self.spec, self._next = self._next, None
        self.state = ReplicaState.RUNNING
        self._watch_health()
        self._on_change(self)

    def _watch_health(self) -> None:
        config = self.spec.config
        self._health.watch(config.health_check_period_s, config.health_check_timeout_s)

    def _sick(self, why: str) -> None:
        logger.warning("%s is unhealthy and is stopped: %s", self.label, why)
        self.give_up(ExitCause.HEALTH_CHECK, why)

    async def _forward(self, output: io.FileIO) -> None:
        stream = asyncio.StreamReader(limit=_LONGEST_LINE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), output
        )
        try:
            for number in count(1):
                if not number % _LINES_AT_ONCE:
                    await asyncio.sleep(0)
                try:
                    line = await stream.readline()
                except ValueError:  # longer than the limit: skipped by the reader
                    continue
                if not line:
                    return
                text = line.decode(errors="replace").rstrip("\n")
                self._tail.append(text)
                self._on_line(self.assignment, self.pid, text)
        finally:
            transport.close()

    def _note_end(self, code: int) -> None:
        """Settle what is known of an end unasked. What was known before, a traceback or a failed check, stays."""
        if self.was_asked or self.state is ReplicaState.FAILED:
            return
        starting = self.state is ReplicaState.STARTING
        self.state = ReplicaState.FAILED if starting else ReplicaState.DIED
        if not self.message:
            self.cause, words = explain(code, self._kills)
            tail = "\n".join(self._tail)
            self.message = f"The replica process {self.pid} ended by {words}."
            self.message += f" Its last output:\n{tail}" if tail else ""
            self.message += versions_differ(self.spec.python) if starting else ""

    def _environment(self, settings: Settings) -> dict[str, str]:
        """Its variables: the host's, those of its runtime_env, and of the devices only its own."""
        chosen = self.spec.env_vars | self.spec.config.env_vars
        devices = {} if self.gpus is None else {VISIBLE_DEVICES: ",".join(self.gpus)}
        return {**settings.child_env(), "PYTHONUNBUFFERED": "1", **chosen, **devices}
