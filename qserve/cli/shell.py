"""`qserve secret` and `completion`: help for the shell."""

from __future__ import annotations

from pathlib import Path
from secrets import token_urlsafe

import click
from click.shell_completion import get_completion_class

from qserve.cli.options import Command

_SHELLS = ("bash", "zsh", "fish")


@click.group()
def secret() -> None:
    """The key that signs calls."""


@secret.command(
    cls=Command,
    examples=(
        "export QSERVE_SECRET_KEY=$(qserve secret new)",
        "(umask 077; qserve secret new > secret.key); export QSERVE_SECRET_KEY_FILE=secret.key",
    ),
)
def new() -> None:
    """Print a new key. Every process of a cluster needs the same one; it is kept nowhere.

    Of several keys, separated by commas, the first signs and all verify. To change the key of a running cluster without
    a gap take three rounds: `old,new` in every process and client; then `new,old`, and deploy again; an hour later,
    when no result of before is kept any more, `new` alone.
    """
    click.echo(token_urlsafe(32))


def _shell(_context: click.Context, _argument: click.Parameter, value: str | None) -> str:
    name = Path(value or "").name  # $SHELL is a path
    if name not in _SHELLS:
        raise click.BadParameter(f"It is one of {', '.join(_SHELLS)}; {value!r} is not.")
    return name


@click.command(
    cls=Command,
    examples=(
        'eval "$(qserve completion bash)"                             # in ~/.bashrc',
        "qserve completion fish > ~/.config/fish/completions/qserve.fish",
    ),
)
@click.argument("shell", required=False, envvar="SHELL", callback=_shell, metavar="[bash|zsh|fish]")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete `qserve`.

    Without an argument it is for the shell that $SHELL names.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click knows all three
    click.echo(kind(context.find_root().command, {}, "qserve", "_QSERVE_COMPLETE").source())
