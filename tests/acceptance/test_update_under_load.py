"""New code under load: 200 calls/s from four processes notice nothing but the new answers."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator

import pytest

import qserve as serve
from tests.acceptance.load import Answer, Load
from tests.support.cluster import eventually

pytestmark = pytest.mark.timeout(120)

CALLS_PER_SECOND = 200
WORK_S = 0.05


@serve.deployment(max_ongoing_requests=40)
class Versioned:
    """Answers with what it was constructed with, or last configured to."""

    def __init__(self, version: str) -> None:
        self._answer = version

    def reconfigure(self, config: dict[str, str]) -> None:
        self._answer = config["answer"]

    async def __call__(self) -> str:
        await asyncio.sleep(WORK_S)
        return self._answer


@pytest.fixture
def load(cluster) -> Iterator[Callable[[], Load]]:
    """Four processes that call the application `default`, 200 times a second in total."""
    started: list[Load] = []

    def start() -> Load:
        started.append(Load(cluster.settings, "default", processes=4, calls_per_second=CALLS_PER_SECOND))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def update(
    load: Callable[[], Load], old: serve.Application, new: serve.Application
) -> tuple[list[Answer], float, float]:
    """Deploy `old`, then `new` under load. Returns the answers, and from when to when the update went on."""
    serve.run(old)
    calling = load()
    begun = time.time()
    wait_until(begun + 5)
    updating = time.time()
    serve.run(new)
    updated = time.time()
    wait_until(updated + 1)
    answers, errors = calling.finish()

    assert errors == []
    assert len(answers) >= 0.9 * CALLS_PER_SECOND * (updated - begun)
    assert {a.value for a in answers if a.at_s < updating - WORK_S} == {"old"}
    assert {a.value for a in answers if a.at_s > updated} == {"new"}
    return [a for a in answers if a.at_s > begun + 1], updating, updated


def wait_until(at_s: float) -> None:
    """Let the load go on until then."""
    eventually(lambda: time.time() >= at_s, within_s=60)


def p99(answers: list[Answer]) -> float:
    """99 % of the calls took no longer, in ms."""
    return statistics.quantiles([a.took_ms for a in answers], n=100)[-1]


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_update_fails_no_call_and_keeps_them_quick(load, replicas):
    """A deploy in the middle of the day, also of a deployment with a single replica: no error, no gap."""
    template = Versioned.options(num_replicas=replicas)
    answers, updating, updated = update(load, template.bind("old"), template.bind("new"))

    before = p99([a for a in answers if a.at_s < updating])
    during = p99([a for a in answers if updating <= a.at_s <= updated])
    assert during <= 2 * before, f"p99 {before:.1f} ms before the update, {during:.1f} ms during it"


def test_a_new_configuration_reaches_running_replicas_in_place(load, cluster):
    """A threshold in `user_config` must not cost a restart of a model that loads for minutes."""
    serve.run(Versioned.options(user_config={"answer": "old"}).bind("?"))
    pids = cluster.replica_pids()
    template = Versioned.options(num_replicas=1)
    update(
        load,
        template.options(user_config={"answer": "old"}).bind("?"),
        template.options(user_config={"answer": "new"}).bind("?"),
    )

    assert cluster.replica_pids() == pids
