"""Why a replica process ended, as far as its worker can know, in words that help to mend it."""

from __future__ import annotations

import platform
import signal

from qserve.node.cgroup import Cgroup
from qserve.spec import ExitCause

# What a shell makes of SIGKILL.
_KILLED = 137


class MemoryKills:
    """How often the kernel has killed for memory in this worker's control group; each kill explains one end."""

    def __init__(self, cgroup: Cgroup | None = None) -> None:
        self._cgroup = cgroup or Cgroup()
        self._explained = self._cgroup.oom_kills()

    def struck(self) -> bool | None:
        """Whether one more process was killed than has been explained; None when the kernel does not say."""
        kills = self._cgroup.oom_kills()
        if kills is None or self._explained is None:
            return None
        if kills <= self._explained:
            return False
        self._explained += 1
        return True


def explain(code: int, kills: MemoryKills) -> tuple[ExitCause, str]:
    """What ended a process unasked, and "by" what in words.

    code  the exit code; -N for signal N
    """
    if code in (-signal.SIGKILL, _KILLED):
        return _explain_kill(struck=kills.struck())
    if code < 0:
        return ExitCause.SIGNAL, _name(-code)
    return ExitCause.EXIT_CODE, f"exit code {code}"


def _explain_kill(*, struck: bool | None) -> tuple[ExitCause, str]:
    if struck:
        return ExitCause.OUT_OF_MEMORY, "SIGKILL: the kernel killed it, because its control group was out of memory"
    if struck is None:
        words = "SIGKILL: by hand, or by the kernel because the host or its control group was out of memory"
        return ExitCause.SIGNAL, words
    return ExitCause.SIGNAL, "SIGKILL: by hand, or by a program; the kernel has not killed for memory here"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def versions_differ(python: str) -> str:
    """What to say with a start that failed here when the code came from another minor version of Python; else empty.

    python  the version that deployed it
    """
    here = platform.python_version()
    if python.split(".")[:2] == here.split(".")[:2]:
        return ""
    return (
        f"\nIt was deployed by Python {python}, and this worker runs {here}: code that travels by value needs the same "
        "minor version. Run one version everywhere, or install the module that defines it on the workers."
    )
