"""A deployment that keeps a ledger: every start and end of a call, in a file that qserve knows nothing of."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import qserve as serve


@serve.deployment(max_ongoing_requests=4)
class Clerk:
    """Notes its work. Held calls wait until the ledger lets them go."""

    def __init__(self, path: str) -> None:
        self._ledger = Ledger(Path(path))

    async def work(self, ticket: int, *, held: bool = False, seconds: float = 0.0) -> int:
        self._ledger.note("start", ticket)
        await asyncio.sleep(seconds)
        while held and not self._ledger.released:  # noqa: ASYNC110 (another process releases it, through a file)
            await asyncio.sleep(0.01)
        self._ledger.note("end", ticket)
        return ticket

    async def pid(self) -> int:
        return os.getpid()


class Ledger:
    """Lines of (what, ticket, pid), appended by replicas and read by the test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def released(self) -> bool:
        """Whether held calls may go on."""
        return self.path.with_suffix(".go").exists()

    def release(self) -> None:
        """Let held calls go on."""
        self.path.with_suffix(".go").touch()

    def note(self, what: str, ticket: int) -> None:
        """Append one line, in one write."""
        with self.path.open("a") as file:
            file.write(f"{what} {ticket} {os.getpid()}\n")

    def lines(self, what: str) -> list[tuple[int, int]]:
        """The (ticket, pid) pairs of one kind, in order."""
        if not self.path.exists():
            return []
        rows = [line.split() for line in self.path.read_text().splitlines()]
        return [(int(ticket), int(pid)) for kind, ticket, pid in rows if kind == what]

    def starts(self) -> Counter[int]:
        """How often each ticket was begun."""
        return Counter(ticket for ticket, _ in self.lines("start"))

    def ends(self) -> Counter[int]:
        """How often each ticket was finished."""
        return Counter(ticket for ticket, _ in self.lines("end"))

    def pids(self) -> list[int]:
        """The processes that have begun work, in order."""
        return list(dict.fromkeys(pid for _, pid in self.lines("start")))
