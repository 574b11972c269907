"""What all our processes do at their door: TERM drains, a second one ends at once, and the owner's end is theirs.

An owner is a process that started this one for itself (an embedded cluster): it holds the other end of our stdin,
and says so by OWNED in the arguments.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from qserve import errors, logs, loops
from qserve.config import Settings
from qserve.errors import QserveError

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


async def keep_running(
    work: Coroutine[Any, Any, None],
    drain: Callable[[], Coroutine[Any, Any, None]],
    *,
    at_once: Callable[[], None] | None = None,
) -> int:
    """Run `work` until its end or a signal, then `drain`; a second signal calls `at_once`. Returns the exit code."""
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
