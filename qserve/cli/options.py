"""What every command shares: the options that name the cluster, and the settings that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from qserve import logs
from qserve.client import portal
from qserve.config import Settings
from qserve.errors import SettingsError

F = TypeVar("F", bound=Callable[..., Any])
_GIVEN = "qserve.given"
_LEVELS = ("debug", "info", "warning", "error")


class Command(click.Command):
    """A command with examples in its help, which takes `qserve`'s own options too: people type them at either end."""

    def __init__(self, *args: Any, examples: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += cluster_options(hidden=True)
        self._examples = examples

    def format_help_text(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(context, formatter)
        write_lines("Examples", self._examples, formatter)


def write_lines(title: str, lines: Sequence[str], formatter: click.HelpFormatter) -> None:
    """A section of a help text whose lines stay as they are."""
    with formatter.section(title):
        for text in lines:
            formatter.write(f"{'':>{formatter.current_indent}}{text}\n")


def cluster_options(*, hidden: bool) -> list[click.Parameter]:
    """Options that go before the environment's variables of the same names."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _remember, "hidden": hidden, "default": None}
    return [
        click.Option(
            ["--redis-url"],
            metavar="URL",
            help="Redis or Valkey: redis://host:6379/0, rediss://, unix:///path. Passwords belong in QSERVE_REDIS_URL.",
            **shared,
        ),
        click.Option(["--namespace"], metavar="NAME", help="Clusters on one Redis are apart by it.", **shared),
        click.Option(["--insecure"], is_flag=True, help="Go without QSERVE_SECRET_KEY on a network.", **shared),
        click.Option(
            ["--log-level"],
            type=click.Choice(_LEVELS, case_sensitive=False),
            help="Of qserve's own lines, on stderr.",
            **shared,
        ),
    ]


def heartbeat_option(command: F) -> F:
    """`--heartbeat-file`, of processes that a supervisor watches. It ends in the settings, as those of the cluster."""
    return click.option(
        "--heartbeat-file",
        metavar="FILE",
        expose_value=False,
        callback=_remember,
        help="Written every 2 s for probes: its age says whether this process hangs, its word whether it is ready.",
    )(command)


def typed() -> dict[str, Any]:
    """Those of these options that were typed, by the names of the settings; the environment is not in it."""
    return dict(click.get_current_context().meta.get(_GIVEN, {}))


def use_settings(*, log_level: str = "ERROR", **changes: Any) -> Settings:
    """Turn this process to the cluster that options and environment name. Raises SettingsError.

    log_level  where neither names one; commands that end soon show errors only
    changes    further settings; None leaves the environment's
    """
    given = typed() | {name: value for name, value in changes.items() if value is not None}
    chosen = replace(Settings.from_env(log_level=log_level), **given)
    logs.configure(chosen)
    portal.use(chosen)
    return chosen


def use_cluster(*, log_level: str = "ERROR") -> Settings:
    """The same, for commands that need a cluster which runs already. Raises SettingsError when none is named."""
    chosen = use_settings(log_level=log_level)
    if chosen.redis_url is None:
        raise SettingsError(
            "No cluster is named: set QSERVE_REDIS_URL (or --redis-url) to its Redis, as in redis://host:6379/0. "
            "For a `qserve run` on this host, `source` the file that it prints; `qserve doctor` looks closer."
        )
    return chosen


def timeout_option(default: float, text: str) -> Callable[[F], F]:
    """`--timeout-s`, in seconds."""
    kind = click.FloatRange(min=0)
    return click.option("--timeout-s", type=kind, default=default, show_default=True, metavar="S", help=text)


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    if not value or option.name is None:
        return
    if option.name == "redis_url" and urlsplit(value).password:
        click.echo(
            "All users of this host can read that password in `ps`: put the URL into QSERVE_REDIS_URL.", err=True
        )
    given = context.meta.setdefault(_GIVEN, {})
    given[option.name] = value.upper() if option.name == "log_level" else value
