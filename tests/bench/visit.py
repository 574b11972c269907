"""One visit to one system, in the system's own environment: `python -m tests.bench.visit`.

This process is the client. It starts the workers, asks every question of `measures`, and prints a line of JSON for
each step and one for the result. When its standard input closes, its whole process group dies: nothing outlives a run.
"""

import argparse
import asyncio
import contextlib
import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO

import psutil

from tests.bench import measures
from tests.bench.options import Sizes
from tests.bench.server import Probe
from tests.bench.systems import CATALOGUE
from tests.bench.systems.system import System, check, message

_STOP_S = 10.0
_LOOK_S = 0.5


class WorkerEnded(Exception):
    """A worker is gone before it was asked to go: nobody would answer."""


class Visit:
    """The steps, in order, and what they found."""

    def __init__(self, bench: measures.Bench, log: IO[bytes], out: IO[str]) -> None:
        self._bench = bench
        self._log = log
        self._out = out
        self._workers: list[subprocess.Popen[bytes]] = []
        self._stopping = False
        self._figures: measures.Figures = {}

    async def run(self) -> None:
        """All steps, as long as the workers live."""
        steps = asyncio.create_task(self._steps())
        while not (await asyncio.wait({steps}, timeout=_LOOK_S))[0]:
            if dead := [worker.returncode for worker in self._workers if worker.poll() is not None]:
                if self._stopping:
                    continue
                steps.cancel()
                raise WorkerEnded(f"a process of the system ended with status {dead[0]}")
        await steps

    async def _steps(self) -> None:
        """One after the other; the last line printed is the result."""
        self._say(step="start")
        await self._bench.system.open()
        self._figures["cold_start_s"] = await self._start()
        for step in (measures.latency, measures.thread_latency, measures.load, measures.payload, measures.idle):
            self._say(step=step.__name__.replace("_", " "))
            self._figures |= await step(self._bench)
        self._say(step="extras")
        self._figures |= await self._bench.system.extras()
        self._say(step="waiting")
        await asyncio.to_thread(self._stop)
        self._figures |= await measures.waiting(self._bench)
        self._say(figures=self._figures, notes=self._bench.notes)
        try:
            await asyncio.wait_for(self._bench.system.close(), _STOP_S)
        except Exception as error:  # noqa: BLE001 - the figures are home; only the log needs to know
            print(f"closing failed: {error!r}")

    async def _start(self) -> float:
        started = time.perf_counter()
        self._launch()
        self._bench.system.tune(1)
        await self._bench.system.deploy()
        check(message(0), await self._bench.system.call(message(0)))
        return time.perf_counter() - started

    def _launch(self) -> None:
        for command in self._bench.system.commands():
            self._workers.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
            )

    def _stop(self) -> None:
        """Ask the workers to leave, then make them."""
        self._stopping = True
        below = [child for worker in self._workers for child in _family(worker.pid)]
        for worker in self._workers:
            worker.terminate()
        _, alive = psutil.wait_procs(below, timeout=_STOP_S)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for worker in self._workers:
            worker.wait()

    def _say(self, **words: object) -> None:
        print(json.dumps(words), file=self._out, flush=True)


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def versions(name: str) -> dict[str, str]:
    """Versions of the packages of a system, where they are installed."""
    found = {}
    for package in CATALOGUE[name].packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _system(name: str, url: str) -> System:
    module, _, attribute = CATALOGUE[name].adapter.partition(":")
    system: System = getattr(importlib.import_module(module), attribute)(url)
    return system


def _die_with_the_bench() -> None:
    # Not sys.stdin: the interpreter cannot close a buffered file that a thread is reading.
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


async def _visit(given: argparse.Namespace, log: IO[bytes], out: IO[str]) -> None:
    system = _system(given.system, given.url)
    sizes = Sizes(**json.loads(given.sizes))
    probe = None if CATALOGUE[given.system].kind == "ray" else Probe(given.port)
    bench = measures.Bench(system, sizes, probe, given.server_pid, os.getpid())
    print(json.dumps({"versions": versions(given.system)}), file=out, flush=True)
    try:
        await Visit(bench, log, out).run()
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=out, flush=True)
        raise


def main() -> None:
    """Parse, visit, leave without waiting for the threads of whatever library it was."""
    parser = argparse.ArgumentParser()
    for name, kind in {"system": str, "url": str, "port": int, "server-pid": int, "sizes": str, "log": Path}.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    given = parser.parse_args()
    # Libraries print to standard output as they like; only our lines may reach the bench.
    out = os.fdopen(os.dup(1), "w")
    with given.log.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        threading.Thread(target=_die_with_the_bench, daemon=True).start()
        asyncio.run(_visit(given, log, out))
    os._exit(0)


if __name__ == "__main__":
    main()
