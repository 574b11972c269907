"""A steady load as a process: calls at a fixed rate until stdin closes; then a JSON line of what became of each.

python -m tests.acceptance.load APP CALLS_PER_SECOND
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import Any, NamedTuple

import qserve as serve
from qserve.config import Settings
from tests.support.cluster import ROOT


class Answer(NamedTuple):
    """One call: when it was submitted (seconds of the epoch), how long it took (ms), and what came back."""

    at_s: float
    took_ms: float
    value: Any


class Load:
    """Processes that call an application at a steady rate, from outside."""

    def __init__(self, settings: Settings, app: str, *, processes: int, calls_per_second: float) -> None:
        env = settings.child_env() | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.acceptance.load", app, str(calls_per_second / processes)]
        self.processes = [
            subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "calling\n"

    def finish(self) -> tuple[list[Answer], list[str]]:
        """Submit no more, wait for all answers. Returns them in order, and the errors in words."""
        told = [json.loads(process.communicate(timeout=60)[0]) for process in self.processes]
        answers = sorted(Answer(*answer) for one in told for answer in one["answers"])
        return answers, [error for one in told for error in one["errors"]]

    def kill(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


async def _call(handle: Any, at_s: float, answers: list[Answer], errors: list[str]) -> None:
    begun = time.perf_counter()
    try:
        value = await handle.remote()
    except Exception as error:  # noqa: BLE001 (whatever a caller would see)
        errors.append(repr(error))
    else:
        answers.append(Answer(at_s, 1000 * (time.perf_counter() - begun), value))


async def _main(app: str, per_second: float) -> None:
    handle = await asyncio.to_thread(serve.get_app_handle, app)
    answers: list[Answer] = []
    errors: list[str] = []
    await handle.remote()
    sys.stdout.write("calling\n")
    sys.stdout.flush()
    stopped = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    calls: set[asyncio.Task[None]] = set()
    due = time.time()
    while not stopped.done():
        call = asyncio.create_task(_call(handle, due, answers, errors))
        calls.add(call)
        call.add_done_callback(calls.discard)
        due += 1 / per_second
        await asyncio.sleep(max(0.0, due - time.time()))
    if calls:
        await asyncio.wait(calls, timeout=30)
    errors += ["no answer within 30 s"] * len(calls)
    sys.stdout.write(json.dumps({"answers": answers, "errors": errors}))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], float(sys.argv[2])))
