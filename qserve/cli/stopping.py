"""Signals as an exception, so that commands in the foreground take down what they have put up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """INT, TERM or HUP has come. Not an Exception: nothing on the way may take it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """In here signals that ask to leave raise Stopped, each time they come; in the main thread."""
    before = {
        number: signal.signal(number, _raise_stopped) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_stopped(number: int, _frame: FrameType | None) -> None:
    raise Stopped(number)
