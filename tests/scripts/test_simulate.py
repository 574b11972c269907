"""The simulator: it repeats, it counts right, and what it shows is what the documentation claims."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.simulator import policies, traces
from scripts.simulator.__main__ import PAGE, main
from scripts.simulator.queue import Look, Outcome, Simulation, Trace
from scripts.simulator.report import write_into

ROOT = Path(__file__).parents[2]


class Plan:
    """A policy that follows a table: from when on how many replicas."""

    def __init__(self, steps: dict[float, int]) -> None:
        self._steps = steps

    def decide(self, look: Look) -> int:
        return max((at, number) for at, number in self._steps.items() if at <= look.sample.at_s)[1]

    def next_look_s(self, _look: Look, _target: int) -> float:
        return 1.0


def trace(*calls: tuple[float, float], lasts_s: float = 100.0, initial: int = 1, slots: int = 1) -> Trace:
    """A trace by hand; replicas take 10 s to start."""
    return Trace("by hand", calls, lasts_s, 0, 10, initial, 10.0, slots)


def run(trace: Trace, steps: dict[float, int]) -> Outcome:
    """What comes of it."""
    return Simulation(trace, Plan(steps)).run()


def test_calls_wait_for_a_slot_in_their_order():
    """One slot, three calls of two seconds at once."""
    assert run(trace((1.0, 2.0), (1.0, 2.0), (1.0, 2.0)), {0: 1}).waits_s == [0.0, 2.0, 4.0]


def test_a_new_replica_takes_calls_when_it_has_started():
    """Wanted at 5, there at 15."""
    out = run(trace((1.0, 60.0), (2.0, 1.0)), {0: 1, 5: 2})

    assert out.waits_s == [0.0, 13.0]
    assert out.replica_s == 100 + 95


def test_a_replica_that_goes_finishes_what_it_runs():
    """Its time counts until then; it takes nothing new."""
    out = run(trace((1.0, 30.0), (6.0, 1.0), initial=1), {0: 1, 5: 0, 40: 1})

    assert out.waits_s == [0.0, 44.0]
    assert out.replica_s == 31 + 60


def test_reversals_are_turns_of_the_target():
    """Up, up, down, up: two turns."""
    assert run(trace(lasts_s=50), {0: 1, 10: 2, 20: 4, 30: 1, 40: 3}).reversals == 2


def test_a_seed_is_a_trace():
    """Who repeats the simulation sees the same figures."""
    assert traces.burst(7, 0.1).calls == traces.burst(7, 0.1).calls
    assert traces.burst(7, 0.1).calls != traces.burst(8, 0.1).calls


@pytest.mark.parametrize("make", traces.ALL, ids=lambda make: make.__name__)
def test_the_default_policy_waits_less_and_runs_less_than_ray_serves(make):
    """The goal, on a seed that the documentation does not use, with replicas that start in one second and in ten."""
    whole = make(99, 0.4)
    for cold_start_s in (1.0, 10.0):
        each = replace(whole, cold_start_s=cold_start_s)
        ours = Simulation(each, policies.ours(each)).run()
        theirs = Simulation(each, policies.RayServe(each)).run()

        assert ours.quantile(0.99) <= theirs.quantile(0.99)
        assert ours.replica_s <= theirs.replica_s


@pytest.mark.parametrize("wait_s", [1.0, 5.0])
def test_target_queue_wait_s_is_kept_once_replicas_have_started(wait_s):
    """The promise to callers: under a steady load, after the time that the start itself takes."""
    steady = replace(traces.steady(3, 0.2), initial_replicas=1, cold_start_s=1.0)
    scaler = policies.Qserve(steady, policies.queue_policy, target_queue_wait_s=wait_s, target_ongoing_requests=100)

    out = Simulation(steady, scaler).run()

    assert out.quantile(0.99) <= wait_s + steady.cold_start_s + 1.0
    assert max(out.waits_s[len(out.waits_s) // 2 :]) <= wait_s


def test_the_quick_run_prints_a_table_and_meets_the_goal(capsys):
    """What `scripts/simulate --quick` does, in two seconds."""
    assert main(["--quick"]) == 0

    printed = capsys.readouterr().out
    assert printed.count("| qserve |") == len(traces.ALL)
    assert printed.count("in 1 of 1.") == len(traces.ALL)


def test_the_table_takes_its_place_in_the_page(tmp_path):
    """And leaves the rest of the page alone."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- simulation: begin -->\nold\n<!-- simulation: end -->\nafter\n")

    write_into(page, "new")

    assert page.read_text() == "before\n<!-- simulation: begin -->\nnew\n<!-- simulation: end -->\nafter\n"


def test_the_documentation_shows_a_run_that_met_the_goal():
    """The table there was written by the simulator, from all traces; its pictures are there."""
    page = (ROOT / PAGE).read_text()
    verdicts = re.findall(r"^- ([\w ]+): p99 wait and replica-seconds .* in (\d+) of (\d+)\.$", page, re.MULTILINE)
    names = {make(1, 0.01).name for make in traces.ALL}

    assert {name for name, met, of in verdicts if met == of} == names
    for picture in re.findall(r"\((images/[^)]+\.png)\)", page):
        assert (ROOT / PAGE.parent / picture).exists(), picture
