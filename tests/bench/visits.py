"""Sends one visit to a system and brings its figures home; nothing that it started is left behind."""

import contextlib
import dataclasses
import json
import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.bench.environments import ROOT
from tests.bench.options import Sizes
from tests.bench.server import Probe, Server

# Ray takes up to 20 s to start; a step that takes minutes has hung.
_STEP_S = 120.0
_LEAVE_S = 15.0


@dataclass
class Result:
    """What one visit found; `error` says why it found nothing."""

    figures: dict[str, float] = field(default_factory=dict)
    notes: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Guide:
    """What all visits of a run share."""

    server: Server
    sizes: Sizes
    unix: bool
    logs: Path
    secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)

    def visit(self, name: str, python: Path, on_step: Callable[[str], None]) -> Result:
        """One visit to one system on an empty server."""
        with Probe(self.server.port) as probe:
            probe.ask("FLUSHALL")
        log = self.logs / f"{name}.log"
        process = subprocess.Popen(
            self._command(name, python, log),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=self._environment(),
            start_new_session=True,
        )
        patience_s = 0.0
        try:
            result = _listen(process, on_step, log)
            patience_s = _LEAVE_S
        finally:
            _sweep(process, patience_s)
        return result

    def _command(self, name: str, python: Path, log: Path) -> list[str]:
        given = {
            "system": name,
            "url": self.server.url(unix=self.unix),
            "port": self.server.port,
            "server-pid": self.server.pid,
            "sizes": json.dumps(dataclasses.asdict(self.sizes)),
            "log": log,
        }
        words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        return [str(python), "-m", "tests.bench.visit", *words]

    def _environment(self) -> dict[str, str]:
        """Ours, with where the server is; settings of qserve that happen to be set here must not leak in."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("QSERVE_")}
        url = self.server.url(unix=self.unix)
        return kept | {
            "BENCH_URL": url,
            "BENCH_SECRET": self.secret,
            "PYTHONPATH": str(ROOT),
            "QSERVE_REDIS_URL": url,
            "QSERVE_SECRET_KEY": self.secret,
            "QSERVE_NAMESPACE": "bench",
        }


def _listen(process: subprocess.Popen[bytes], on_step: Callable[[str], None], log: Path) -> Result:
    result, step = Result(), "start"
    for line in _lines(process):
        words = json.loads(line)
        if "step" in words:
            step = words["step"]
            on_step(step)
        result.versions = words.get("versions", result.versions)
        if "figures" in words:
            result.figures, result.notes = words["figures"], words["notes"]
            return result
        if "error" in words:
            result.error = f"in step {step!r}, {words['error'][:500]}"
            return result
    result.error = f"in step {step!r}, without a word; its log ends with: {_last_words(log)}"
    return result


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Lines as they come, until the visit ends or is silent for too long."""
    assert process.stdout is not None
    descriptor, buffer = process.stdout.fileno(), b""
    until = time.monotonic() + _STEP_S
    while time.monotonic() < until:
        ready, _, _ = select.select([descriptor], [], [], 1.0)
        if not ready:
            continue
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return
        buffer += chunk
        *whole, buffer = buffer.split(b"\n")
        yield from whole
        until = time.monotonic() + _STEP_S


def _last_words(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "it left no log"
    return lines[-1][:300] if lines else "it printed nothing"


def _sweep(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """End the visit and all below it, also what moved to another process group; after some time to leave by itself."""
    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error, subprocess.TimeoutExpired):
        below = psutil.Process(process.pid).children(recursive=True)
        process.wait(patience_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in below:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(below, timeout=5)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
