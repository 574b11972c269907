"""Options that every command takes, and what its process ends with."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qserve import errors
from qserve.cli.root import qserve
from qserve.doors import exit_code

BLOCKED = "import sys; sys.modules[{name!r}] = None; from qserve.cli import main; main()"


def test_an_option_goes_before_the_environment(invoke):
    """What was typed now was meant."""
    result = invoke("--namespace", "typed", "status", env={"QSERVE_NAMESPACE": "exported"})
    assert "namespace 'typed'" in result.stdout


def test_the_environment_is_used_where_no_option_is_typed(invoke):
    """Set once a shell."""
    assert "namespace 'exported'" in invoke("status", env={"QSERVE_NAMESPACE": "exported"}).stdout


def test_options_stand_before_or_behind_the_command(invoke):
    """Nobody remembers which."""
    assert invoke("--namespace", "typed", "status").stdout == invoke("status", "--namespace", "typed").stdout


@pytest.mark.parametrize("arguments", [("--namespace", "a b", "status"), ("--redis-url", "http://host", "status")])
def test_a_wrong_setting_exits_with_78(invoke, arguments):
    """As sysexits.h has it: supervisors do not start it again."""
    result = invoke(*arguments)
    assert result.exit_code == 78
    assert result.stderr.startswith("Error: The ")


def test_a_password_on_the_command_line_is_warned_of(invoke):
    """`ps` shows it to every user of the host."""
    result = invoke("--redis-url", "redis://:pa55@host:6379/0", "secret", "new")
    assert "All users of this host can read that password" in result.stderr
    assert "pa55" not in result.output


def test_a_wrong_level_in_the_environment_is_named(invoke):
    """Not a traceback of logging's."""
    result = invoke("status", env={"QSERVE_LOG_LEVEL": "loud"})
    assert result.exit_code == 78
    assert "'LOUD' (QSERVE_LOG_LEVEL)" in result.stderr


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.CallLost, 1),
        (errors.DeployFailed, 1),
        (errors.SerializationError, 1),
        (errors.UsageError, 2),
        (errors.DeploymentNotFound, 2),
        (errors.ResultTimeout, 3),
        (errors.DeployTimeout, 3),
        (errors.BrokerUnavailable, 69),
        (errors.BrokerBinaryMissing, 69),
        (errors.DeploymentUnavailableError, 69),
        (errors.BrokerInUse, 75),
        (errors.BrokerDenied, 77),
        (errors.SignatureError, 77),
        (errors.CallRejected, 77),
        (errors.SettingsError, 78),
        (errors.SecretRequired, 78),
    ],
)
def test_an_errors_exit_code_says_who_is_to_act(kind, code):
    """The user, the caller later, the operator: scripts and supervisors go by it."""
    assert exit_code(kind("what happened")) == code


@pytest.mark.slow
def test_a_wrong_password_exits_with_77(invoke, settings):
    """Not 69: trying again does not help."""
    url = (settings.redis_url or "").replace("unix://", "unix://nobody:pa55@")
    result = invoke("status", env={"QSERVE_REDIS_URL": url})
    assert result.exit_code == 77
    assert "WRONGPASS" in result.stderr
    assert "pa55" not in result.output


def test_a_bug_of_ours_is_a_traceback_and_70(invoke, monkeypatch):
    """It is told from every error that a user can mend."""
    monkeypatch.setattr("qserve.api.status", lambda _name: 1 / 0)
    result = invoke("status")
    assert result.exit_code == 70
    assert "ZeroDivisionError" in result.stderr


@pytest.mark.parametrize("name", ["click", "rich"])
def test_without_the_extra_the_command_says_how_to_install_it(name):
    """`pip install qserve` brings the script, and not what it needs."""
    ended = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(name=name)], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == f"The command line needs {name}: pip install 'qserve[cli]'\n"


def test_the_command_line_imports_no_room_that_it_does_not_enter():
    """Every TAB in a shell imports it."""
    code = "import sys, qserve.cli.root; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True).stdout
    heavy = {"rich", "redis", "psutil", "watchfiles", "qserve.node", "qserve.controller", "qserve.doctor"}
    assert not heavy & set(loaded.split())


def commands(group=qserve, path=()):
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_each_commands_help_has_an_example_that_names_it(invoke, path):
    """People copy examples before they read options."""
    help_text = invoke(*path, "--help").stdout
    assert "Examples:" in help_text
    assert f"qserve {' '.join(path)}" in help_text.partition("Examples:")[2]


def test_the_help_fits_a_terminal_and_cuts_no_sentence(invoke):
    """The first thing that anybody sees of qserve."""
    help_text = invoke("--help").stdout
    assert max(map(len, help_text.splitlines())) <= 100
    assert "..." not in help_text.partition("Commands:")[2].partition("Exit codes:")[0]
