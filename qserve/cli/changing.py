"""What commands that change applications share: how long they wait, what they show before, while and after."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from qserve import api
from qserve.cli.options import timeout_option

F = TypeVar("F", bound=Callable[..., Any])
Change = Callable[[api.Waits], api.Plan]


def wait_options(text: str) -> Callable[[F], F]:
    """`--timeout-s` and `--no-wait`, which the command gets as `how`."""

    def decorate(command: F) -> F:
        @timeout_option(60.0, text)
        @click.option("--no-wait", is_flag=True, help="Return at once; it goes on by itself.")
        @functools.wraps(command)
        def with_how(*args: Any, no_wait: bool, timeout_s: float, **kwargs: Any) -> Any:
            return command(*args, how=api.Waits(wait=not no_wait, timeout_s=timeout_s), **kwargs)

        return with_how  # type: ignore[return-value]  # click gives the command more options than it is called with

    return decorate


def carry_out(change: Change, how: api.Waits, done: str) -> None:
    """Make a change with a live line for each deployment; then say what was done, and that it is `done`."""
    from qserve.cli import show

    with show.Progress(is_embedded=False) as progress:
        change({**how, "on_plan": show.changes, "on_progress": progress})
    if how.get("wait", True):
        click.echo(done)
    else:
        click.echo("It goes on by itself: `qserve status --watch` follows it.")


def app_and_deployment(path: str) -> tuple[str, str | None]:
    """APP[.DEPLOYMENT]: a deployment's name may hold dots."""
    app, _, deployment = path.partition(".")
    return app, deployment or None
