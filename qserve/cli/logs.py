"""`qserve logs`: what replicas wrote, on whichever host."""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from qserve import loops
from qserve.cli.options import Command, use_cluster
from qserve.config import Settings
from qserve.errors import BrokerUnavailable
from qserve.store.connection import endpoint_of
from qserve.store.link import Link
from qserve.store.logs import LogLine, LogReader
from qserve.store.state import ClusterState
from qserve.wire.signing import KeyRing

_TAIL, _FOLLOWED_TAIL = 100, 10
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
# What a line may do to a terminal: colour it. All else that is no text would let a line write over others.
_UNPRINTABLE = re.compile(r"(\x1b\[[0-9;]*m)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# 128 + SIGPIPE, as other programs end whose reader has gone.
_NOBODY_READS = 141


def _since(_context: click.Context, _option: click.Parameter, text: str | None) -> Callable[[int], int]:
    """What makes the server's time (ms) the time from which on lines are wanted."""
    if text is None:
        return lambda _now_ms: 0
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        back_ms = int(float(match[1]) * _SECONDS[match[2]] * 1000)
        return lambda now_ms: max(0, now_ms - back_ms)
    try:
        at_ms = int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is neither a time span like 30s, 5m, 2h nor an ISO time.") from error
    return lambda _now_ms: at_ms


@click.command(
    cls=Command,
    examples=(
        "qserve logs                          # all applications",
        "qserve logs default.Greeter --tail 20",
        "qserve logs Greeter#3fa9 -f          # one replica, as its lines are marked",
        "qserve logs shop --since 5m --json",
        "qserve logs --since 2026-11-21T19:00 | grep ERROR",
    ),
)
@click.argument("target", default="", metavar="[TARGET]")
@click.option("-f", "--follow", is_flag=True, help="Go on with lines as they come, until Ctrl-C.")
@click.option("--since", callback=_since, metavar="TIME", help="From then on: 30s, 5m, 2h ago, or an ISO time.")
@click.option(
    "--tail",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"The last N lines.  [default: {_TAIL}; with -f: {_FOLLOWED_TAIL}]",
)
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@click.option("--json", "as_json", is_flag=True, help="For programs: an object a line.")
def logs(
    target: str,
    *,
    follow: bool,
    since: Callable[[int], int],
    tail: int | None,
    timestamps: bool,
    as_json: bool,
) -> None:
    """Show what replicas wrote, and what their workers say of them.

    TARGET is an application, APP.DEPLOYMENT, a deployment, or a replica as in the marks of its lines. The last 1,000
    lines or so of each deployment are kept, for a day (`qserve worker --log-lines`); single ones are cut at 8 KiB.
    """
    settings = use_cluster(log_level="WARNING" if follow else "ERROR")
    most = tail if tail is not None else _FOLLOWED_TAIL if follow else _TAIL
    show = partial(_print, as_line=_as_json if as_json else _text_maker(timestamps=timestamps))
    try:
        loops.run(_read(settings, target, most, since, show, follow=follow), settings)
    except BrokenPipeError:
        with Path(os.devnull).open("w") as nowhere:  # or Python would complain of it once more at its end
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        click.get_current_context().exit(_NOBODY_READS)


async def _read(
    settings: Settings,
    target: str,
    most: int,
    since: Callable[[int], int],
    show: Callable[[Iterable[LogLine]], None],
    *,
    follow: bool,
) -> None:
    link = Link(endpoint_of(settings), "qserve-logs")
    reader = LogReader(ClusterState(link, settings.namespace, KeyRing(settings.secrets)), target)
    try:
        found = await reader.last(most, since(await reader.now_ms()))
        show(found)
        if not found and most and not follow:
            click.echo("No lines are kept.", err=True)
        while follow:
            with suppress(BrokerUnavailable):  # the link says so, and comes back
                async for lines in reader.coming():
                    show(lines)
    finally:
        await link.close()


def _text_maker(*, timestamps: bool) -> Callable[[LogLine], str]:
    """What makes a line for people: plain into a file or a pipe, with colours on a terminal unless it has none."""
    if not sys.stdout.isatty():
        return partial(_as_text, timestamps=timestamps)
    from rich.console import Console

    return partial(_as_terminal_text, timestamps=timestamps, has_colours=not Console().no_color)


def _print(lines: Iterable[LogLine], *, as_line: Callable[[LogLine], str]) -> None:
    for line in lines:
        click.echo(as_line(line))


def _as_text(line: LogLine, *, timestamps: bool) -> str:
    return f"{_time(line) + ' ' if timestamps else ''}{_mark(line)} {line.text}"


def _as_terminal_text(line: LogLine, *, timestamps: bool, has_colours: bool) -> str:
    """The same for eyes: a colour for each replica, and nothing that could write over other lines."""
    text = _UNPRINTABLE.sub(lambda match: match[1] or "", line.text)
    when = f"{_time(line)} " if timestamps else ""
    if not has_colours:
        return f"{when}{_mark(line)} {text}"
    colour = _COLOURS[zlib.crc32(line.replica_id.encode()) % len(_COLOURS)]
    mark = click.style(_mark(line), fg=colour)
    return f"{click.style(when, dim=True)}{mark} {click.style(text, dim=True) if line.of_worker else text}"


def _mark(line: LogLine) -> str:
    """As on the worker's own stdout."""
    return f"({line.label} {'worker' if line.of_worker else f'pid={line.pid}'})"


def _as_json(line: LogLine) -> str:
    return json.dumps(
        {
            "ts": _time(line),
            "app": line.app,
            "deployment": line.deployment,
            "replica": line.replica_id,
            "pid": line.pid,
            "host": line.host,
            "source": "worker" if line.of_worker else "replica",
            "msg": line.text,
        },
        ensure_ascii=False,
    )


def _time(line: LogLine) -> str:
    return datetime.fromtimestamp(line.at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
