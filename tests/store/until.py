"""Waiting for what another process does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(check: Callable[[], object], *, within_s: float = 5.0, what: str = "") -> None:
    """Wait until `check()` is true; the event loop runs on. Fails with `what` after `within_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not check():
        assert loop.time() < deadline, f"not within {within_s} s: {what or check}"
        await asyncio.sleep(0.002)
