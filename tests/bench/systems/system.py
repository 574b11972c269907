"""What the bench asks of a system: one small interface, so that all of them get exactly the same questions."""

import abc
import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

# A call that takes longer than this has gone wrong, at any load that the bench makes.
TIMEOUT_S = 60.0


class WrongReply(Exception):
    """A call came back with something else than what was sent: its figures would mean nothing."""


class System(abc.ABC):
    """One system, set up as its own users would set it up. Made anew for every visit.

    The order of a visit: `open`, the processes of `commands` start, `deploy`, calls, the processes stop,
    `submit`, `close`.
    """

    has_threads = False

    def __init__(self, url: str) -> None:
        self.url = url

    @abc.abstractmethod
    def commands(self) -> list[list[str]]:
        """The command line of each process to start beside the client: the worker, and what it needs."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Make the client ready; no worker runs yet."""

    async def deploy(self) -> None:
        """Tell running workers what to run, where the system wants to be told."""
        return

    def tune(self, in_flight: int) -> None:
        """Settings that depend on the load: how often a client that polls looks for its reply."""
        return

    @abc.abstractmethod
    async def call(self, argument: object) -> object:
        """One call, from putting it to its reply."""

    def call_from_thread(self, argument: object) -> object:
        """One call from a thread that may block; only where `has_threads`."""
        raise NotImplementedError

    @abc.abstractmethod
    async def submit(self, count: int) -> None:
        """Put small calls, without waiting for replies."""

    async def load(self, seconds: float, in_flight: int) -> int:
        """Keep `in_flight` calls under way for some seconds; returns how many came back, all checked."""
        return await run_lanes(self.call, seconds, in_flight)

    async def extras(self) -> dict[str, float]:
        """Figures that only this system has."""
        return {}

    async def close(self) -> None:
        """Let go of everything that `open` and `deploy` took."""
        return


def message(number: int) -> str:
    """A small argument, told apart from every other."""
    return f"message {number:012d} of the bench"


def check(sent: object, received: object) -> None:
    """Raise WrongReply unless the echo is what was sent."""
    if sent != received:
        raise WrongReply(f"Sent {str(sent)[:80]!r} and received {str(received)[:80]!r}: the figures mean nothing.")


async def run_lanes(call: Callable[[object], Awaitable[object]], seconds: float, in_flight: int) -> int:
    """`in_flight` lanes, each one call after another until the time is up."""
    numbers = itertools.count()
    until = time.perf_counter() + seconds

    async def lane() -> int:
        done = 0
        while time.perf_counter() < until:
            argument = message(next(numbers))
            check(argument, await call(argument))
            done += 1
        return done

    return sum(await asyncio.gather(*(lane() for _ in range(in_flight))))
