"""What a run measures, and for how long; the command line that says so."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.systems import CATALOGUE


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work one visit to one system is; the same for every system."""

    latency_calls: int = 1000
    latency_s: float = 4.0
    warm_s: float = 1.0
    load_s: float = 4.0
    in_flight: int = 1000
    payload_calls: int = 15
    idle_s: float = 6.0
    waiting_calls: int = 2000


QUICK = Sizes(latency_calls=200, latency_s=1.5, warm_s=0.5, load_s=1.5, payload_calls=5, idle_s=2.0, waiting_calls=500)


@dataclass(frozen=True, kw_only=True)
class Options:
    """One run, as the command line asked for it."""

    systems: tuple[str, ...]
    rounds: int
    sizes: Sizes
    unix: bool
    json: Path | None
    markdown: Path | None
    update_docs: bool
    logs: Path | None


def parse(arguments: Sequence[str]) -> Options:
    """The run that these command line arguments ask for; exits with status 2 when they make no sense."""
    parser = _parser()
    given = parser.parse_args(arguments)
    systems = tuple(name.strip() for name in given.systems.split(",") if name.strip())
    if unknown := [name for name in systems if name not in CATALOGUE]:
        parser.error(f"no system is called {', '.join(unknown)}; there are {', '.join(CATALOGUE)}")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be at least 1")
    return Options(
        systems=systems,
        rounds=given.rounds or (1 if given.quick else 3),
        sizes=QUICK if given.quick else Sizes(),
        unix=given.unix,
        json=given.json,
        markdown=given.markdown,
        update_docs=given.update_docs,
        logs=given.logs,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add("--systems", default=",".join(CATALOGUE), help="which, separated by commas (default: %(default)s)")
    add("--rounds", type=int, help="visits to every system, interleaved (default: 3, with --quick 1)")
    add("--quick", action="store_true", help="shorter visits: a smoke test, not a measurement")
    add("--unix", action="store_true", help="a unix socket instead of a loopback TCP port, for every system")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    add("--update-docs", action="store_true", help="write the tables into docs/performance.md")
    add("--logs", type=Path, metavar="DIR", help="keep what the workers printed (default: a temporary folder)")
    return parser
