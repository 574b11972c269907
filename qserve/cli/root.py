"""`qserve`: the commands in the order of its help, and what an error becomes."""

from __future__ import annotations

import traceback
from typing import Any

import click

from qserve.cli.calling import call, delete, shutdown
from qserve.cli.config import config
from qserve.cli.deploying import deploy
from qserve.cli.generating import generate
from qserve.cli.hosting import autoscaler, broker, worker
from qserve.cli.logs import logs
from qserve.cli.looking import doctor, ps, status
from qserve.cli.operating import pause, restart, resume, rollback, scale
from qserve.cli.options import cluster_options, write_lines
from qserve.cli.running import run
from qserve.cli.scheduling import cron, scheduler
from qserve.cli.shell import completion, secret
from qserve.cli.stopping import Stopped
from qserve.config import VERSION
from qserve.doors import INTERNAL, exit_code
from qserve.errors import QserveError, RemoteError

_INTERRUPTED = 130
_FIRST_STEPS = (
    "qserve run my_app:app       # serve an application, with nothing installed but Python",
    "",
    "export QSERVE_REDIS_URL=redis://host:6379/0 QSERVE_SECRET_KEY=...   # on hosts of your own",
    "qserve worker               # host replicas; on every host that offers capacity",
    "qserve autoscaler           # decide what runs where; two for safety",
    "qserve deploy my_app:app    # deploy",
    "qserve doctor               # say what is missing",
    "qserve call default.Greeter.say_hi '[\"you\"]'",
)
_EXIT_CODES = (
    "0 ok                             70 a bug of qserve",
    "1 failed                         75 try again",
    "2 wrong usage, or no such name   77 signature or password refused",
    "3 timed out                      78 wrong settings",
    "69 Redis or a worker is missing  130, 143 ended by a signal",
)


class Root(click.Group):
    """Ends with one message and an exit code when a person can mend the error; else with a traceback."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(self.commands)

    def format_help_text(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(context, formatter)
        write_lines("First steps", _FIRST_STEPS, formatter)

    def format_epilog(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        write_lines("Exit codes", _EXIT_CODES, formatter)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, Stopped, KeyboardInterrupt) as error:  # noqa: BLE001 (whatever it is, the exit code says it)
            return context.exit(report(error))


def report(error: BaseException) -> int:
    """Say on stderr what ended a command. Returns its exit code."""
    if isinstance(error, QserveError):
        click.echo(f"Error: {_message(error)}", err=True)
        return exit_code(error)
    if isinstance(error, Stopped):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    traceback.print_exception(error)
    return INTERNAL


def _message(error: QserveError) -> str:
    """The text for stderr: with the traceback of the user's code where that is what failed."""
    if isinstance(error, RemoteError) and error.traceback_str:
        return f"{error}\n\n{error.traceback_str}".rstrip()
    return str(error).rstrip()


@click.group(cls=Root, params=cluster_options(hidden=False), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="qserve")
def qserve() -> None:
    """Ray Serve's handle API on nothing but Redis or Valkey.

    The options below may also stand behind the command, and go before the environment's QSERVE_* variables.
    """


for _command in (
    run,
    deploy,
    status,
    ps,
    logs,
    call,
    scale,
    pause,
    resume,
    restart,
    rollback,
    delete,
    shutdown,
    config,
    doctor,
    worker,
    autoscaler,
    scheduler,
    cron,
    broker,
    generate,
    secret,
    completion,
):
    qserve.add_command(_command)
