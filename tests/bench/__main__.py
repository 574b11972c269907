"""The door of the bench: `python -m tests.bench [--quick] [--systems a,b] [--rounds N]`."""

import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench.environments import ROOT, SystemMissing, interpreter
from tests.bench.machine import describe
from tests.bench.options import Options, parse
from tests.bench.report import Report
from tests.bench.server import running_server
from tests.bench.visits import Guide

_DOCUMENT = ROOT / "docs" / "performance.md"


class Progress:
    """One line on standard error: rewritten in a terminal, a line for each visit elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._began = time.monotonic()

    def step(self, title: str, step: str) -> None:
        """A step of a visit has begun."""
        self.show(f"{title}: {step}")

    def show(self, text: str, *, last: bool = False) -> None:
        """What is going on now; `last` when it will stay."""
        stamped = f"{time.monotonic() - self._began:5.0f} s  {text}"
        if self._live:
            print(f"\r\x1b[K{stamped[:100]}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last:
            print(stamped, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, write. 0 when every visit came home, else 1."""
    options = parse(sys.argv[1:])
    # Like Ctrl-C, so that what was started is ended and what was made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = measure(options, Progress())
    print(report.plain())
    if options.json:
        options.json.write_text(report.json() + "\n")
    if options.markdown:
        options.markdown.write_text(report.markdown())
    if options.update_docs:
        report.update(_DOCUMENT)
    return int(any(found.error for made in report.rounds for found in made.values()))


def measure(options: Options, progress: Progress) -> Report:
    """All rounds; in each, every system once, starting with another one each time."""
    pythons, left_out = _interpreters(options, progress)
    with ExitStack() as stack:
        server = stack.enter_context(running_server())
        logs = options.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qserve-bench-logs-")))
        logs.mkdir(parents=True, exist_ok=True)
        guide = Guide(server, options.sizes, options.unix, logs.resolve())
        report = Report(options, describe(server), left_out)
        names = list(pythons)
        for number in range(options.rounds):
            report.rounds.append({})
            turn = number % max(len(names), 1)
            for name in names[turn:] + names[:turn]:
                title = f"round {number + 1}/{options.rounds}  {name}"
                found = guide.visit(name, pythons[name], partial(progress.step, title))
                report.rounds[-1][name] = found
                progress.show(f"{title}: {found.error or _headline(found.figures)}", last=True)
    return report


def _interpreters(options: Options, progress: Progress) -> tuple[dict[str, Path], dict[str, str]]:
    pythons, left_out = {}, {}
    for name in options.systems:
        progress.show(f"preparing {name}")
        try:
            pythons[name] = interpreter(name)
        except SystemMissing as error:
            left_out[name] = str(error)
            progress.show(f"{name} is left out: {error}", last=True)
    return pythons, left_out


def _headline(figures: dict[str, float]) -> str:
    return f"{figures['p50_ms']:.2f} ms, {figures['calls_per_s']:,.0f} calls/s"


if __name__ == "__main__":
    sys.exit(main())
