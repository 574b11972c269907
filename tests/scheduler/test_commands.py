"""`qserve cron` and `qserve scheduler` as a user types them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from qserve.cli.root import qserve


@pytest.fixture
def typed(settings, monkeypatch):
    """Runs a command on the test's cluster."""
    for name, value in settings.child_env().items():
        if name.startswith("QSERVE_"):
            monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(qserve, arguments, catch_exceptions=False)


@pytest.fixture
def tidy(settings):
    """A recurring call."""
    pytest.importorskip("cronsim", reason="the extra [scheduler] is not installed")
    import qserve as serve
    from qserve.handle import DeploymentHandle

    return serve.cron("0 3 * * *", DeploymentHandle("Echo", "app").tidy, name="tidy", timezone="Europe/Vienna")


def test_recurring_calls_are_listed(typed, tidy):
    """What runs in this cluster by the clock, and when next."""
    shown = typed("cron", "list")

    assert shown.exit_code == 0
    row = shown.stdout.splitlines()[1].split()
    assert row[:8] == ["tidy", "app.Echo.tidy", "0", "3", "*", "*", "*", "Europe/Vienna"]


def test_recurring_calls_are_listed_for_programs(typed, tidy):
    """The same as serve.crons()."""
    assert json.loads(typed("cron", "list", "--json").stdout) == [tidy.to_dict()]


def test_where_there_is_none_it_says_so(typed):
    """And for programs it is an empty list."""
    assert "No recurring call" in typed("cron", "list").stdout
    assert json.loads(typed("cron", "list", "--json").stdout) == []


def test_a_recurring_call_is_removed(typed, tidy):
    """From any host, without the script that registered it."""
    assert typed("cron", "remove", "tidy").exit_code == 0
    assert json.loads(typed("cron", "list", "--json").stdout) == []


def test_a_name_that_nobody_knows_is_told_with_those_there_are(typed, tidy):
    """A typing error is seen at once."""
    refused = typed("cron", "remove", "tydi")

    assert refused.exit_code == 2
    assert "'tidy'" in refused.stderr


def test_help_names_what_it_needs(typed):
    """Read before anything is installed."""
    assert "qserve[scheduler]" in typed("scheduler", "--help").stdout
