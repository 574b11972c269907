"""Running a process of ours on an event loop: uvloop where it is installed, never as a policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from qserve.config import Settings

T = TypeVar("T")


def factory(settings: Settings) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes an event loop: uvloop's if it is installed and not switched off, else asyncio's."""
    if settings.uvloop:
        try:
            import uvloop
        except ImportError:
            return asyncio.new_event_loop
        make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return make
    return asyncio.new_event_loop


def run(work: Coroutine[Any, Any, T], settings: Settings) -> T:
    """Run a coroutine to its end on a new loop."""
    with asyncio.Runner(loop_factory=factory(settings)) as runner:
        return runner.run(work)
