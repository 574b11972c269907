"""The door of a replica process: takes its assignment from its worker over a socket, builds the class, serves."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from types import FrameType
from typing import Any

from qserve import logs, loops
from qserve.client import portal
from qserve.config import MAX_CONTROL_BYTES, Settings
from qserve.context import ReplicaContext, set_replica_context
from qserve.replica.load import Servable, build
from qserve.replica.serve import Server
from qserve.spec import Assignment, DeploymentSpec
from qserve.store.connection import endpoint_of
from qserve.store.link import Link
from qserve.store.state import ClusterState
from qserve.wire.signing import KeyRing

logger = logging.getLogger("qserve.replica")
_PR_SET_PDEATHSIG = 1
_WORKER_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_forking = threading.local()


class Control:
    """The socket to the worker: JSON lines, both ways. End of file means that the worker is gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, fd: int) -> Control:
        """Take over the socket that was inherited as `fd`."""
        os.set_inheritable(fd, False)  # noqa: FBT003 (positional only): programs that user code starts have no business with it
        return cls(*await asyncio.open_connection(sock=socket.socket(fileno=fd), limit=MAX_CONTROL_BYTES))

    async def read(self) -> dict[str, Any] | None:
        """The next message; None when the worker is gone."""
        line = await self._reader.readline()
        message: dict[str, Any] | None = json.loads(line) if line else None
        return message

    def tell(self, **message: Any) -> None:
        """Send a message to the worker."""
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def flush(self) -> None:
        """Wait until what was told has left."""
        await self._writer.drain()


async def main(fd: int) -> int:
    """Serve one assignment. Returns the exit code."""
    control = await Control.open(fd)
    message = await control.read()
    if message is None:
        return 1
    settings = Settings.from_env()
    assignment = Assignment.model_validate(message["assignment"])
    spec = DeploymentSpec.model_validate(message["spec"])
    try:
        servable = await _build(settings, assignment, spec)
        server = Server(settings, assignment, spec.config, servable)
        await server.connect()
    except BaseException:  # noqa: BLE001 (user code may raise anything, and the worker must hear of it)
        control.tell(state="FAILED", message=traceback.format_exc())
        await control.flush()
        return 1
    control.tell(state="RUNNING")
    return await _serve(server, servable, control)


async def _build(settings: Settings, assignment: Assignment, spec: DeploymentSpec) -> Servable:
    link = Link(endpoint_of(settings), f"qserve-{assignment.replica_id}-load")
    try:
        state = ClusterState(link, settings.namespace, KeyRing(settings.secrets))
        code = await state.code(assignment.version)
        app = await state.app(assignment.app)
    finally:
        await link.close()
    context = ReplicaContext(assignment.app, assignment.deployment, assignment.replica_id, assignment.version, None)
    set_replica_context(context)
    limits = {deployment.name: deployment.config.max_queued_requests for deployment in app.deployments}
    servable = await build(code, spec.config.user_config, limits)
    set_replica_context(
        ReplicaContext(
            assignment.app, assignment.deployment, assignment.replica_id, assignment.version, servable.target
        )
    )
    return servable


async def _serve(server: Server, servable: Servable, control: Control) -> int:
    serving = asyncio.create_task(server.run())
    listening = asyncio.create_task(control.read())
    await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    message = listening.result() if listening.done() else None
    if message is None:
        logger.warning("The worker is gone; so is this replica.")
        return 1
    gone = asyncio.create_task(control.read())
    draining = asyncio.create_task(server.drain(float(message["drain"])))
    await asyncio.wait((draining, gone), return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    if draining.done():
        draining.result()
        await servable.finalize()
    return 0


def _die_with_parent() -> None:
    """Have the kernel kill this process when the worker dies, however it dies (Linux; elsewhere the socket tells)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _leave_signals_to_worker() -> None:
    """The worker decides when we end: a Ctrl-C in its terminal is its affair.

    SIG_IGN would be inherited by the processes that user code starts, and `Popen.terminate()` would not end them: a
    handler is reset by exec, and by us after a fork.
    """
    for name in _WORKER_SIGNALS:
        signal.signal(name, _ignore)
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_hear_signals)


def _hold_signals() -> None:
    """A signal to a child that has just been forked must wait until the child can hear it."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WORKER_SIGNALS)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _hear_signals() -> None:
    for name in _WORKER_SIGNALS:
        if signal.getsignal(name) is _ignore:  # user code may have set its own
            signal.signal(name, signal.SIG_DFL)
    _release_signals()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    return


if __name__ == "__main__":
    _die_with_parent()
    _leave_signals_to_worker()
    chosen = Settings.from_env()
    logs.configure(chosen)
    code = loops.run(main(int(sys.argv[1])), chosen)
    portal.use(None)  # calls that user threads have just made leave first
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # user threads must not hold the process, and __del__ has run
