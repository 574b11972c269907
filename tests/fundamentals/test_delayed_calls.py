"""Calls that run later: `handle.options(delay_s=...)` and `handle.options(at=...)`."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import qserve as serve
from qserve.errors import DeploymentUnavailableError, ResultTimeout, UsageError
from tests.support.cluster import eventually

HOUR_S = 3600


@serve.deployment
class Clock:
    """Says when it was asked."""

    def now(self) -> float:
        return time.time()

    def echo(self, value: Any) -> Any:
        return value

    async def remind(self, value: Any) -> str:
        """A call that makes a later call, and ends before it."""
        response = serve.get_deployment_handle("Clock").options(delay_s=0.3).echo.remote(value)
        return response.request_id


@pytest.fixture(scope="module")
def clock(cluster):
    """The handle of the application."""
    return serve.run(Clock.bind(), name="clock")


def test_a_call_runs_after_its_delay(clock):
    """Not before: that is all that was asked for; and soon after."""
    asked_at = time.time()

    ran_at = clock.options(delay_s=0.5).now.remote().result(timeout_s=10)

    assert 0.5 <= ran_at - asked_at < 2


def test_a_call_runs_at_a_moment(clock):
    """A datetime with a timezone, or seconds of the epoch as `time.time()` has them."""
    moment = datetime.now(UTC) + timedelta(seconds=0.5)

    first = clock.now.options(at=moment).remote()
    second = clock.now.options(at=moment.timestamp()).remote()

    assert all(each.result(timeout_s=10) >= moment.timestamp() - 0.001 for each in (first, second))


def test_a_moment_that_has_passed_is_now(clock):
    """Late is better than never, and the caller knows the time as well as we do."""
    assert clock.echo.options(at=time.time() - HOUR_S).remote("late").result(timeout_s=10) == "late"


async def test_a_delayed_call_is_awaited_like_any_other(clock):
    """On an event loop, beside others that are not delayed."""
    later = clock.options(delay_s=0.3)

    values = await asyncio.gather(later.echo.remote(1), clock.echo.remote(2), later.echo.remote(3))

    assert list(values) == [1, 2, 3]


def test_it_says_that_it_is_scheduled(clock):
    """A call that waits for its time does not wait for a replica: an operator must be able to tell."""
    response = clock.options(delay_s=0.5).echo.remote(1)
    assert response.status() == "SCHEDULED"

    assert response.result(timeout_s=10) == 1
    assert response.status() == "DONE"


def test_its_result_is_fetched_by_its_id(clock):
    """The process that made it may be gone when it runs."""
    name = clock.options(delay_s=0.3).echo.remote("kept").request_id

    assert serve.get_response(name).result(timeout_s=10) == "kept"


def test_a_replica_makes_delayed_calls_as_well(clock):
    """Reminders and retries are made by the code that runs."""
    name = clock.remind.remote("remember").result(timeout_s=10)

    assert serve.get_response(name).result(timeout_s=10) == "remember"


def test_waiting_for_it_may_time_out_and_go_on(clock):
    """The same as with any other call."""
    response = clock.options(delay_s=0.6).echo.remote(1)

    with pytest.raises(ResultTimeout):
        response.result(timeout_s=0.05)
    assert response.result(timeout_s=10) == 1


def test_the_option_belongs_to_the_handle_that_options_returned(clock):
    """As with all options: the handle itself stays as it was."""
    clock.options(delay_s=HOUR_S)

    assert clock.echo.remote(1).result(timeout_s=10) == 1
    assert clock.options(delay_s=HOUR_S).options(delay_s=0).echo.remote(2).result(timeout_s=10) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"delay_s": 1, "at": 2_000_000_000},
        {"delay_s": -1},
        {"delay_s": 400 * 24 * HOUR_S},
        {"at": datetime(2027, 1, 1)},  # noqa: DTZ001 (that is what is refused)
        {"at": time.time() * 1000},
    ],
)
def test_what_is_no_delay_is_refused_at_once(clock, options):
    """Two times, times that were meant otherwise, and datetimes that mean another moment on each host."""
    with pytest.raises(UsageError):
        clock.options(**options)


def test_deleting_the_application_answers_its_delayed_calls(cluster, server, settings):
    """They will not run: their callers hear so now, and nothing of them stays in Redis."""
    handle = serve.run(Clock.options(name="Short").bind(), name="short")
    responses = [handle.options(delay_s=HOUR_S).echo.remote(number) for number in range(3)]
    assert {response.status() for response in responses} == {"SCHEDULED"}

    serve.delete("short")

    for response in responses:
        with pytest.raises(DeploymentUnavailableError, match="deleted"):
            response.result(timeout_s=10)
    eventually(lambda: list(server.scan_iter(f"*{settings.namespace}:short:*")) == [])
