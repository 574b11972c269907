"""Autoscaling policies side by side on seeded traces; no Redis, no waiting. `scripts/simulate` runs this."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.simulator import policies, report, traces
from scripts.simulator.queue import Simulation
from scripts.simulator.report import Run

PAGE = Path("docs/autoscaling.md")
IMAGES = Path("docs/images")
# Of the traces' whole length; each still has its peak.
_QUICK = 0.2


def main(arguments: Sequence[str]) -> int:
    """Simulate and print. Returns 1 when a trace does not meet the goal of the comparison."""
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, traces of a fifth of their length")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many seeds, from 1 on (default: 5)")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE}, and plots into {IMAGES}")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    length, seeds = (_QUICK, 1) if options.quick else (1.0, options.seeds)
    runs = [simulate(number, seed, length) for number in range(len(traces.ALL)) for seed in range(1, seeds + 1)]
    text = report.table(runs)
    print(text)
    print(f"\n{len(runs) * len(policies.ALL)} simulations in {time.monotonic() - began:.0f} s.")
    if options.write:
        report.write_into(PAGE, text)
        IMAGES.mkdir(exist_ok=True)
        for run in runs:
            if run.seed == 1:
                print(report.plot(run, IMAGES))
    return 0 if all(run.is_met for run in runs) else 1


def simulate(number: int, seed: int, length: float) -> Run:
    """One trace, of one seed, under each policy."""
    trace = traces.ALL[number](seed, length)
    return Run(trace, seed, {name: Simulation(trace, made(trace)).run() for name, made in policies.ALL.items()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
