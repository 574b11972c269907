"""What all our processes do at their door: TERM drains, a second one ends at once, and the owner's end is theirs.

An owner is a process that started this one for itself (an embedded cluster): it holds the other end of our stdin,
and says so by OWNED in the arguments. A supervisor may ask for a heartbeat file, which its probes look at.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from qserve import errors, logs, loops
from qserve.config import HEARTBEAT_S, Settings
from qserve.errors import QserveError, SettingsError

logger = logging.getLogger("qserve.doors")

OWNED = "--owned"
# What an owner writes to our stdin to have us leave in order.
LEAVE = b"leave"
# Shorter than the broker's own grace (store/guard.py): what is nearly done can still be stored.
_ORPHAN_GRACE_S = 2.0
# Those of sysexits.h from 64 on. An error that is not listed has the code of the nearest of its classes that is.
INTERNAL = 70
_EXIT_CODES: dict[type, int] = {
    errors.QserveError: 1,
    errors.SerializationError: 1,
    errors.PayloadTooLarge: 1,
    errors.MissingExtra: 1,
    errors.UsageError: 2,
    errors.ResultTimeout: 3,
    errors.DeployTimeout: 3,
    errors.TransportError: 69,
    errors.DeploymentUnavailableError: 69,
    errors.BackPressureError: 75,
    errors.BrokerInUse: 75,
    errors.BrokerDenied: 77,
    errors.SignatureError: 77,
    errors.CallRejected: 77,
    errors.SettingsError: 78,
    errors.SecretRequired: 78,
}


def exit_code(error: QserveError) -> int:
    """What a process ends with that this error has ended."""
    return next(_EXIT_CODES[kind] for kind in type(error).__mro__ if kind in _EXIT_CODES)


def run_door(main: Coroutine[Any, Any, int], settings: Settings) -> int:
    """Run a process of ours to its end. An error of the family that a person can mend is one line and an exit code."""
    logs.configure(settings)
    try:
        return loops.run(main, settings)
    except QserveError as error:
        sys.stderr.write(f"{error}\n")
        return exit_code(error)


class Heartbeat:
    """A file that is written again with each heartbeat: it grows old when the event loop hangs.

    Its word is "starting", "ready" or "draining". It says nothing of Redis: what waits for Redis to come back is alive.
    """

    def __init__(self, path: str, is_ready: Callable[[], bool]) -> None:
        self._path = Path(path)
        self._next = self._path.with_name(f"{self._path.name}.next")
        self._is_ready = is_ready
        self._draining = False

    def begin(self) -> None:
        """Write it for the first time. Raises SettingsError when there is no place for it."""
        try:
            self._write()
        except OSError as error:
            raise SettingsError(
                f"The heartbeat file {str(self._path)!r} cannot be written: {error}. Make its folder, or name another "
                "file with --heartbeat-file."
            ) from error

    async def keep(self) -> None:
        """Write it until cancelled, then take it away."""
        try:
            while True:
                self._try_to_write()
                await asyncio.sleep(HEARTBEAT_S)
        finally:
            self._path.unlink(missing_ok=True)

    def drain(self) -> None:
        """Say that this process leaves; it beats on until it has."""
        self._draining = True
        self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self._write()
        except OSError as error:  # the work goes on; the supervisor sees an old file, and this line says why
            logger.warning("The heartbeat file cannot be written: %s", error)

    def _write(self) -> None:
        """In one step: whoever reads it never finds it empty."""
        word = "draining" if self._draining else "ready" if self._is_ready() else "starting"
        self._next.write_text(f"{word}\n", encoding="utf-8")
        self._next.replace(self._path)


async def keep_running(
    work: Coroutine[Any, Any, None],
    drain: Callable[[], Coroutine[Any, Any, None]],
    *,
    at_once: Callable[[], None] | None = None,
    heartbeat_file: str | None = None,
    is_ready: Callable[[], bool] = lambda: True,
) -> int:
    """Run `work` until its end or a signal, then `drain`; a second signal calls `at_once`. Returns the exit code.

    heartbeat_file  kept fresh from here to the end of `drain`; "ready" stands in it once `is_ready()`
    """
    if heartbeat_file is None:
        return await _run_and_drain(work, drain, at_once)
    heartbeat = Heartbeat(heartbeat_file, is_ready)
    try:
        heartbeat.begin()
    except SettingsError:
        work.close()
        raise

    async def leave() -> None:
        heartbeat.drain()
        await drain()

    beating = asyncio.create_task(heartbeat.keep(), name="heartbeat file")
    try:
        return await _run_and_drain(work, leave, at_once)
    finally:
        beating.cancel()
        await asyncio.wait([beating])


async def _run_and_drain(
    work: Coroutine[Any, Any, None],
    drain: Callable[[], Coroutine[Any, Any, None]],
    at_once: Callable[[], None] | None,
) -> int:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def stop() -> None:
        if asked.is_set() and at_once is not None:
            at_once()
        asked.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    if OWNED in sys.argv:
        loop.add_reader(sys.stdin.fileno(), _owner_spoke, loop, stop)
    working, asking = loop.create_task(work), loop.create_task(asked.wait())
    await asyncio.wait((working, asking), return_when=asyncio.FIRST_COMPLETED)
    asking.cancel()
    if working.done():
        working.result()  # raises what ended it
    await drain()
    working.cancel()
    await asyncio.wait([working])
    return 0


def _owner_spoke(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """The owner wants us to leave, or is gone (end of file): then nobody waits for what still runs."""
    if os.read(sys.stdin.fileno(), 16):
        stop()
        return
    loop.remove_reader(sys.stdin.fileno())
    stop()
    loop.call_later(_ORPHAN_GRACE_S, stop)
