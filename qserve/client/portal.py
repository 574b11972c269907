"""How this process reaches its cluster: a core for each event loop, and one thread for all other callers."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from qserve import loops
from qserve.client.core import Core
from qserve.client.outbox import ENQUEUE_TIMEOUT_S
from qserve.client.response import DeploymentResponse
from qserve.config import Settings
from qserve.errors import BrokerUnavailable, QserveError
from qserve.wire.keys import parse_request_id, request_id

logger = logging.getLogger("qserve.client")

T = TypeVar("T")


class Portal:
    """One thread with an event loop of its own, and the core on it."""

    def __init__(self, settings: Settings) -> None:
        self.loop = loops.factory(settings)()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="qserve-portal", daemon=True)
        self._thread.start()
        started.wait()
        atexit.register(self.close)
        try:
            self.core: Core = self.run(_make_core(settings))
        except BaseException:
            self.close()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the portal's loop and wait for it, from any other thread."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # a Ctrl-C here must not leave the work going on
            raise

    def close(self) -> None:
        """End the thread, and with it the core, once the calls made so far are stored. Safe to call twice."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout=ENQUEUE_TIMEOUT_S + 1.0)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(started.set)
        try:
            self.loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


class _Process:
    """What this process knows: its cluster, its portal, its cores. A forked child forgets all but the cluster."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.lock = threading.RLock()
        self.portal: Portal | None = None
        self.cores: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Core] = weakref.WeakKeyDictionary()
        self.left_by_fork: list[object] = []

    def forget(self) -> None:
        """In a forked child: let go of the parent's connections without closing them; they are the parent's."""
        self.left_by_fork.append((self.portal, self.cores))
        known = [] if self.portal is None else [self.portal.core]
        for core in (*known, *self.cores.values()):
            core.closed = True  # its responses find the child's own portal
        self.lock = threading.RLock()
        self.portal = None
        self.cores = weakref.WeakKeyDictionary()


_process = _Process()
os.register_at_fork(after_in_child=_process.forget)


def settings() -> Settings:
    """The process's cluster: what `use` was given, else the environment's."""
    return _process.settings or Settings.from_env()


def use(chosen: Settings | None) -> None:
    """Turn the process to another cluster; None returns to the environment's. Handles follow with their next call."""
    with _process.lock:
        portal, _process.portal = _process.portal, None
        cores, _process.cores = _process.cores, weakref.WeakKeyDictionary()
        _process.settings = chosen
    if portal is not None:
        portal.close()
    for loop, core in list(cores.items()):
        if not loop.is_closed():
            loop.call_soon_threadsafe(core.close)


def portal() -> Portal:
    """The process's portal; its thread starts with the first use. Raises SettingsError, SecretRequired."""
    with _process.lock:
        if _process.portal is None:
            _process.portal = Portal(settings())
        return _process.portal


def current_core() -> Core:
    """The core for the caller: its running event loop's own, else the portal's."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 (its public form raises; this is per call)
    if loop is None:
        known = _process.portal
        return known.core if known is not None else portal().core
    core = _process.cores.get(loop)
    return _new_core(loop) if core is None else core


def get_response(request_id: str) -> DeploymentResponse[Any]:
    """The response of a call that any process made, from its `response.request_id`.

    Raises ValueError for anything that is no request id. A call that Redis does not know has status UNKNOWN, and
    CallLost when it is fetched.
    """
    app, deployment, call_id = parse_request_id(request_id)
    return current_core().attach(app, deployment, call_id)


async def _make_core(chosen: Settings) -> Core:
    return Core(chosen, _see_to)


def _new_core(loop: asyncio.AbstractEventLoop) -> Core:
    with _process.lock:
        # A core holds its loop, so the weak keys alone would keep both for ever.
        for ended in [known for known in _process.cores if known.is_closed()]:
            del _process.cores[ended]
        if _process.portal is not None and _process.portal.loop is loop:
            return _process.portal.core
        core = _process.cores[loop] = Core(settings(), _see_to)
    return core


def _see_to(core: Core, responses: list[DeploymentResponse[Any]]) -> None:
    """A core has closed: the portal fetches what others than its loop wait for; outside the cluster nobody can."""
    if _process.cores.get(core.loop) is core:  # its event loop ends, the process goes on
        waited_for = [response for response in responses if response.is_awaited(beyond=core.loop)]
        if not waited_for:
            return
        try:
            heir = portal().core
        except (QserveError, RuntimeError) as error:  # RuntimeError: the interpreter ends, threads can't start any more
            logger.info("No other event loop takes over the open calls: %s", error)
        else:
            for response in waited_for:
                response.move_to(heir)
            return
    for response in responses:
        if response.is_awaited():
            response.fail(_left(response))


def _left(response: DeploymentResponse[Any]) -> BrokerUnavailable:
    name = request_id(response.keys.app, response.keys.deployment, response.call_id)
    return BrokerUnavailable(
        f"This process left its cluster before '{response.keys.deployment}.{response.method}' was answered. "
        f"The call may run all the same: serve.get_response({name!r}) fetches its result from a process in the cluster."
    )
