"""Whether a replica is well: it is asked every period, and three failures in a row make it sick.

One timer for each replica, no task; a check that is still on its way is never sent twice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

MOST_FAILURES = 3


class Health:
    """Asks one replica by `send(number)`; its answer goes to `answered`. `on_sick(why)` is called once.

    A check fails that reports an error, or that has no answer after its timeout. While it has none, each further
    period counts as one more failure, so that a replica which hangs is found without asking it again.
    """

    def __init__(self, send: Callable[[int], None], on_sick: Callable[[str], None]) -> None:
        self._send = send
        self._on_sick = on_sick
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._period_s = self._timeout_s = 0.0
        self._number = 0
        self._began_at = 0.0
        self._failures = 0
        self._judging = False  # a check has begun, and there is no verdict yet
        self._unanswered = False  # the last check that was sent is still on its way,
        self._overdue = False  # and has been counted as failed

    def watch(self, period_s: float, timeout_s: float) -> None:
        """Begin, or go on with other settings: a pause between two checks begins anew."""
        self._period_s, self._timeout_s = period_s, timeout_s
        if not self._judging:
            self._began_at = self._loop.time()
            self._rest()

    def answered(self, number: int, error: str) -> None:
        """The replica's answer to a check; `error` is empty when it is well."""
        if self._timer is None or number != self._number or not self._unanswered:
            return
        self._unanswered = False
        if not self._overdue:
            self._judge(error)
            return
        self._overdue = False
        if self._judging:  # it answers again: now it can be asked
            self._ask()

    def stop(self) -> None:
        """Ask no more. Safe to call twice, or before `watch`."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _ask(self) -> None:
        self._judging = True
        self._began_at = self._loop.time()
        if not self._unanswered:
            self._number += 1
            self._unanswered = True
            self._send(self._number)
        self._arm(self._timeout_s, self._late)

    def _late(self) -> None:
        self._overdue = True
        self._judge(f"check_health() had not ended after {self._timeout_s:g} s.")

    def _judge(self, error: str) -> None:
        self._judging = False
        self._failures = self._failures + 1 if error else 0
        if self._failures < MOST_FAILURES:
            self._rest()
            return
        self.stop()
        self._on_sick(f"It failed {self._failures} health checks in a row, the last one with:\n{error}")

    def _rest(self) -> None:
        """Until the next check is due, counted from where the last one began; spread, so that checks fall apart."""
        due_at = self._began_at + self._period_s * random.uniform(0.9, 1.1)  # noqa: S311 (spreads load, no secret)
        self._arm(max(0.0, due_at - self._loop.time()), self._ask)

    def _arm(self, delay_s: float, step: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, step)
