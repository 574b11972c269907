"""`qserve secret new` and `qserve completion`: output for the shell, and nothing beside it."""

from __future__ import annotations

import pytest

from qserve.config import MIN_SECRET_BYTES, read_secret


def test_a_new_secret_is_one_that_the_settings_take(invoke):
    """It goes from one command into the other by $(...)."""
    result = invoke("secret", "new")
    (secret,) = read_secret({"QSERVE_SECRET_KEY": result.stdout})
    assert len(secret) >= 2 * MIN_SECRET_BYTES


def test_no_two_secrets_are_the_same(invoke):
    """A key that can be guessed is none."""
    assert invoke("secret", "new").stdout != invoke("secret", "new").stdout


def test_its_help_tells_how_a_key_is_changed_while_calls_run(invoke):
    """With the new key first at once, processes that do not know it would refuse calls: they must learn it before."""
    text = invoke("secret", "new", "--help").stdout
    assert 0 < text.index("`old,new`") < text.index("`new,old`") < text.index("`new` alone")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell_that_was_named(invoke, shell):
    """It asks qserve itself, by the variable that click reads."""
    result = invoke("completion", shell)
    assert f"_QSERVE_COMPLETE={shell}_complete" in result.stdout
    assert result.exit_code == 0


def test_without_a_name_it_is_for_the_users_shell(invoke):
    """One line for everybody's rc file."""
    assert "fish_complete" in invoke("completion", env={"SHELL": "/usr/bin/fish"}).stdout


@pytest.mark.parametrize("arguments", [("completion", "tcsh"), ("completion",)])
def test_another_shell_is_wrong_usage(invoke, arguments):
    """The shells that there are stand in the message."""
    result = invoke(*arguments, env={"SHELL": None})
    assert result.exit_code == 2
    assert "bash, zsh, fish" in result.stderr
