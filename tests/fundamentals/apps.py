"""Deployments that several files of this ring use."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any

import qserve as serve


@serve.deployment(max_ongoing_requests=100, graceful_shutdown_timeout_s=0.2)
class Gate:
    """Calls wait at a gate until somebody opens it: what a test needs to catch a call in the middle."""

    def __init__(self) -> None:
        self._gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._waiting: Counter[str] = Counter()

    async def wait(self, gate: str, value: Any = None) -> Any:
        """Wait until the gate is open, then return `value`."""
        self._waiting[gate] += 1
        await self._gates[gate].wait()
        return value

    async def open(self, gate: str) -> None:
        """Let all through, now and later."""
        self._gates[gate].set()

    async def waiting(self, gate: str) -> int:
        """How many calls have come to the gate."""
        return self._waiting[gate]
