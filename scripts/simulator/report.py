"""What the simulations say: a table, the comparison that is the goal, and plots."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from scripts.simulator.queue import Outcome, Trace

OURS, RIVAL = "qserve", "Ray Serve"
_BEGIN, _END = "<!-- simulation: begin -->", "<!-- simulation: end -->"
_COLOURS = {"qserve": "tab:blue", "Ray Serve": "tab:red", "KEDA": "tab:gray"}


@dataclass(frozen=True)
class Run:
    """One trace, of one seed, under each policy."""

    trace: Trace
    seed: int
    outcomes: Mapping[str, Outcome]

    @property
    def is_met(self) -> bool:
        """Whether ours waits no longer than the rival, and takes no more of replicas' time."""
        ours, rival = self.outcomes[OURS], self.outcomes[RIVAL]
        return ours.quantile(0.99) <= rival.quantile(0.99) and ours.replica_s <= rival.replica_s


def table(runs: Sequence[Run]) -> str:
    """Markdown: for each trace and policy the median of the seeds, and from where to where they go."""
    seeds = sorted({run.seed for run in runs})
    head = "| trace | policy | p50 wait, s | p99 wait, s | replica-seconds | most replicas | reversals |"
    lines = [f"Seeds {', '.join(map(str, seeds))}: median (lowest-highest).", "", head]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    lines += [line for runs_of in _by_trace(runs) for line in _lines(runs_of)]
    return "\n".join([*lines, "", *_verdicts(runs)])


def _lines(runs: Sequence[Run]) -> Iterator[str]:
    for number, policy in enumerate(runs[0].outcomes):
        outcomes = [run.outcomes[policy] for run in runs]
        cells = [
            "" if number else f"{runs[0].trace.name}",
            policy,
            _cell(outcomes, lambda out: out.quantile(0.5), "{:.2f}"),
            _cell(outcomes, lambda out: out.quantile(0.99), "{:.2f}"),
            _cell(outcomes, lambda out: out.replica_s, "{:,.0f}"),
            _cell(outcomes, lambda out: max(count for _, count in out.targets), "{:.0f}"),
            _cell(outcomes, lambda out: out.reversals, "{:.0f}"),
        ]
        yield f"| {' | '.join(cells)} |"


def _cell(outcomes: Sequence[Outcome], figure: Callable[[Outcome], float], form: str) -> str:
    values = sorted(figure(outcome) for outcome in outcomes)
    low, mid, high = (form.format(value) for value in (values[0], median(values), values[-1]))
    return mid if low == high else f"{mid} ({low}-{high})"


def _verdicts(runs: Sequence[Run]) -> Iterator[str]:
    for runs_of in _by_trace(runs):
        met = f"{sum(run.is_met for run in runs_of)} of {len(runs_of)}"
        yield f"- {runs_of[0].trace.name}: p99 wait and replica-seconds at or below {RIVAL}'s in {met}."


def _by_trace(runs: Sequence[Run]) -> list[list[Run]]:
    return [[run for run in runs if run.trace.name == name] for name in dict.fromkeys(run.trace.name for run in runs)]


def write_into(page: Path, text: str) -> None:
    """Put the table between its marks in a page."""
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


# Plots


def plot(run: Run, folder: Path) -> Path:
    """One picture: arrivals and replicas above, waiting calls below. Needs matplotlib."""
    matplotlib = importlib.import_module("matplotlib")  # only the environment of scripts/simulate has it
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 4.6), height_ratios=(3, 2))
    _draw_arrivals(above, run.trace)
    for policy, outcome in run.outcomes.items():
        targets = [*outcome.targets, (run.trace.lasts_s, outcome.targets[-1][1])]
        style = {"where": "post", "label": policy, "color": _COLOURS[policy]}
        above.step([at / 60 for at, _ in targets], [count for _, count in targets], **style)
        below.step([at / 60 for at, _ in outcome.waiting], [count for _, count in outcome.waiting], **style)
    above.set_title(f"{run.trace.name}, seed {run.seed}")
    above.set_ylabel("replicas")
    above.legend(loc="upper right", fontsize="small")
    below.set_ylabel("waiting calls")
    below.set_xlabel("minutes")
    file = folder / f"autoscaling-{run.trace.name.replace(' ', '-')}.png"
    figure.tight_layout()
    figure.savefig(file, dpi=72, metadata={"Software": None})
    pyplot.close(figure)
    return file


def _draw_arrivals(axes: Any, trace: Trace) -> None:
    """Calls a second, on an axis of their own."""
    width_s = max(5.0, trace.lasts_s / 300)
    counts = [0] * (int(trace.lasts_s / width_s) + 1)
    for at, _ in trace.calls:
        counts[int(at / width_s)] += 1
    rates = axes.twinx()
    edges = [number * width_s / 60 for number in range(len(counts) + 1)]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    rates.fill_between(middles, [count / width_s for count in counts], color="tab:orange", alpha=0.25)
    rates.set_ylabel("calls a second", color="tab:orange")
    rates.set_ylim(bottom=0)
