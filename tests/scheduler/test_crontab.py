"""When a cron expression is due: pure, with the time as an argument."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cronsim", reason="the extra [scheduler] is not installed")

from qserve.errors import UsageError
from qserve.scheduling.crontab import Turn, next_after, turn

VIENNA = "Europe/Vienna"
NOON_S = datetime(2027, 3, 1, 12, 0, tzinfo=UTC).timestamp()
EVERY_MINUTE = "* * * * *"


def vienna(month: int, day: int, hour: int, minute: int = 0, *, fold: int = 0) -> float:
    """A moment of 2027 on a clock in Vienna."""
    return datetime(2027, month, day, hour, minute, tzinfo=ZoneInfo(VIENNA), fold=fold).timestamp()


@pytest.mark.parametrize(
    ("expression", "due_s"),
    [
        (EVERY_MINUTE, 60),
        ("*/5 * * * *", 300),
        ("* * * * * *", 1),
        ("*/10 * * * * *", 10),
        ("30 13 * * *", 5400),
        ("0 12 * * *", 86_400),
        ("0 0 L * *", datetime(2027, 3, 31, tzinfo=UTC).timestamp() - NOON_S),
        ("0 0 * * MON#2", datetime(2027, 3, 8, tzinfo=UTC).timestamp() - NOON_S),
    ],
)
def test_an_expression_is_due_next(expression, due_s):
    """Five fields as in crontab, six with seconds; never the moment itself, which has been made."""
    assert next_after(expression, "UTC", NOON_S) == NOON_S + due_s


@pytest.mark.parametrize(
    "expression", ["", "soon", "* * * *", "* * * * * * *", "60 * * * *", "*/0 * * * *", "0 0 30 2 *", "@daily", None, 5]
)
def test_a_wrong_expression_is_refused_with_the_right_form(expression):
    """At the line that is wrong, not by a run that never came."""
    with pytest.raises(UsageError, match="cron expression"):
        next_after(expression, "UTC", NOON_S)


@given(st.text(alphabet="0123456789*/,-#LW MONJAN", max_size=30))
def test_any_text_is_an_expression_or_refused(expression):
    """Nothing that a person types may raise what nobody catches, or take for ever."""
    try:
        assert next_after(expression, "UTC", NOON_S) > NOON_S
    except UsageError:
        return


@pytest.mark.parametrize("timezone", ["Mars/Olympus", "", "../../etc/passwd", "/etc/passwd", None])
def test_a_timezone_that_nobody_knows_is_refused(timezone):
    """And no file is opened for it."""
    with pytest.raises(UsageError, match="timezone"):
        next_after(EVERY_MINUTE, timezone, NOON_S)


def test_a_time_of_day_follows_the_clocks_of_its_timezone():
    """Nine o'clock is nine o'clock in summer too: 23 hours after nine of the day before."""
    saturday, sunday = vienna(3, 27, 9), vienna(3, 28, 9)

    assert next_after("0 9 * * *", VIENNA, saturday) == sunday
    assert sunday - saturday == 23 * 3600


def test_a_time_that_the_clocks_skip_is_due_when_they_are_past_it():
    """02:30 does not exist on that day; the backup runs all the same, once."""
    assert next_after("30 2 * * *", VIENNA, vienna(3, 28, 1)) == vienna(3, 28, 3)


def test_a_time_that_the_clocks_repeat_is_due_once():
    """02:30 exists twice on that day; the invoices go out once."""
    first = next_after("30 2 * * *", VIENNA, vienna(10, 31, 0))
    assert first == vienna(10, 31, 2, 30)

    assert next_after("30 2 * * *", VIENNA, first) == vienna(11, 1, 2, 30)
    assert next_after("30 2 * * *", VIENNA, vienna(10, 31, 2, 10, fold=1)) == vienna(11, 1, 2, 30)


def test_what_is_due_now_is_made_and_the_next_one_known():
    """The usual case: a scheduler wakes a moment after the time."""
    assert turn(EVERY_MINUTE, "UTC", since_s=NOON_S - 0.001, now_s=NOON_S + 0.4, grace_s=60) == Turn(
        NOON_S, NOON_S + 60
    )


def test_of_the_runs_that_were_missed_only_the_latest_is_made():
    """Ten minutes without a scheduler are no reason to send ten mails."""
    assert turn(EVERY_MINUTE, "UTC", since_s=NOON_S - 601, now_s=NOON_S + 30, grace_s=60) == Turn(NOON_S, NOON_S + 60)


def test_a_run_that_is_too_late_is_left_out():
    """The report of the night, made at noon, would be taken for that of noon."""
    assert turn("0 3 * * *", "UTC", since_s=NOON_S - 86_400, now_s=NOON_S, grace_s=60).due_s is None


def test_a_run_is_in_time_up_to_its_grace():
    """The limit itself belongs to it: 60 s late is not more than 60 s late."""
    assert turn("0 12 * * *", "UTC", since_s=0, now_s=NOON_S + 60, grace_s=60).due_s == NOON_S
    assert turn("0 12 * * *", "UTC", since_s=0, now_s=NOON_S + 61, grace_s=60).due_s is None


def test_runs_before_it_was_registered_are_not_made():
    """Somebody registers at half past what is due on the hour: the first run is the next one."""
    assert turn("0 * * * *", "UTC", since_s=NOON_S + 5, now_s=NOON_S + 6, grace_s=60) == Turn(None, NOON_S + 3600)


@given(
    since=st.integers(0, 200_000),
    later=st.integers(0, 20_000),
    grace=st.integers(0, 3600),
    expression=st.sampled_from([EVERY_MINUTE, "*/7 * * * *", "*/30 * * * * *", "15 3 * * *"]),
    timezone=st.sampled_from(["UTC", VIENNA, "America/New_York"]),
)
def test_a_turn_is_within_its_limits(since, later, grace, expression, timezone):
    """Whatever was missed: never early, never too late, never before the beginning, and always with a next one."""
    since_s, now_s = NOON_S + since, NOON_S + since + later

    made = turn(expression, timezone, since_s=since_s, now_s=now_s, grace_s=grace)

    assert made.next_s > now_s
    if made.due_s is not None:
        assert since_s < made.due_s <= now_s
        assert now_s - made.due_s <= grace
