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

from qserve import logs, loops
from qserve.config import Settings
from qserve.errors import QserveError, TransportError

OWNED = "--owned"


# sysexits.h: the service is not there
UNAVAILABLE = 69


def run_door(main: Coroutine[Any, Any, int], settings: Settings) -> int:
    """Run a process of ours to its end. An error of the family that a person can mend is one line and an exit code."""
    logs.configure(settings)
    try:
        return loops.run(main, settings)
    except QserveError as error:
        sys.stderr.write(f"{error}\n")
        return UNAVAILABLE if isinstance(error, TransportError) else 1


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
    """End of file on stdin: the owner is gone, or has closed it to have us leave."""
    if not os.read(sys.stdin.fileno(), 1):
        loop.remove_reader(sys.stdin.fileno())
        stop()
