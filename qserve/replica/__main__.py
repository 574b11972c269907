"""The door of a replica process: takes its assignment from its worker over a socket, builds the class, serves."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
from types import FrameType

from qserve import logs, loops
from qserve.client import portal
from qserve.config import Settings
from qserve.context import ReplicaContext, set_replica_context
from qserve.replica.control import Control
from qserve.replica.load import Servable, build
from qserve.replica.orders import Orders
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


async def main(fd: int) -> int:
    """Serve one assignment. Returns the exit code."""
    control = await Control.open(fd)
    message = await control.read()
    if message is None:
        return 1
    assignment = Assignment.model_validate(message["assignment"])
    spec = DeploymentSpec.model_validate(message["spec"])
    servable = Servable()
    orders = Orders(control, servable, spec)
    following = asyncio.create_task(orders.follow())
    starting = asyncio.create_task(_start(assignment, spec, servable, orders))
    await asyncio.wait((starting, following), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # it is not wanted any more
        starting.cancel()
        await asyncio.wait([starting])
        await servable.finalize()
        return 0
    server = starting.result()
    return 1 if server is None else await _serve(server, servable, orders, following)


async def _start(assignment: Assignment, spec: DeploymentSpec, servable: Servable, orders: Orders) -> Server | None:
    """Build the class, and be ready to serve when its first health check has passed. None when that failed.

    Either is told to the worker from here: user code may raise SystemExit, which no task hands on to another.
    """
    try:
        settings = Settings.from_env()
        await _build(settings, assignment, spec, servable)
        await servable.check_health(spec.config.health_check_timeout_s, at_start=True)
        server = Server(settings, assignment, spec, servable, on_retire=orders.retire)
        await server.connect()
    except BaseException:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        await orders.failed()
        return None
    orders.started(server)
    return server


async def _build(settings: Settings, assignment: Assignment, spec: DeploymentSpec, servable: Servable) -> None:
    link = Link(endpoint_of(settings), f"qserve-{assignment.replica_id}-load")
    try:
        state = ClusterState(link, settings.namespace, KeyRing(settings.secrets))
        code = await state.code(assignment.version)
        app = await state.app(assignment.app)
    finally:
        await link.close()
    names = (assignment.app, assignment.deployment, assignment.replica_id, assignment.version)
    set_replica_context(ReplicaContext(*names, None))
    limits = {deployment.name: deployment.config.max_queued_requests for deployment in app.deployments}
    await build(servable, code, spec.config.user_config, limits)
    set_replica_context(ReplicaContext(*names, servable.target))


async def _serve(server: Server, servable: Servable, orders: Orders, following: asyncio.Task[float | None]) -> int:
    serving = asyncio.create_task(server.run())
    await asyncio.wait((serving, following), return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    timeout_s = following.result()
    if timeout_s is None:
        logger.warning("The worker is gone; so is this replica.")
        return 1
    gone = asyncio.create_task(orders.worker_is_gone())
    draining = asyncio.create_task(server.drain(timeout_s))
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
