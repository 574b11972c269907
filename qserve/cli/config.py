"""`qserve config show`, `validate` and `schema`: the config file, of a cluster and in general."""

from __future__ import annotations

import json

import click

from qserve import api
from qserve.cli.options import Command, use_cluster


@click.group()
def config() -> None:
    """The config file: show a cluster's, check one."""


@config.command(
    cls=Command,
    examples=(
        "qserve config show",
        "qserve config show shop > serve.yaml",
    ),
)
@click.argument("app", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(app: str | None, *, as_json: bool) -> None:
    """Print what is deployed as a config file that deploys it again.

    Options that have their default are left out. An application that was deployed from Python has no import_path: a
    comment says so.
    """
    import yaml

    from qserve.schema import as_config

    use_cluster()
    shown = as_config(api.wanted(app))
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    for each in shown["applications"]:
        if "import_path" not in each:
            click.echo(f"# {each['name']} was deployed from Python: add its import_path, as in my_app:app.")
    click.echo(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), nl=False)


@config.command(
    cls=Command,
    examples=("qserve config validate serve.yaml",),
)
@click.argument("file")
def validate(file: str) -> None:
    """Check a config file.

    Needs no cluster and imports nothing. Exits with 78 and every mistake. `qserve deploy FILE --dry-run` builds the
    applications, too.
    """
    from qserve import schema
    from qserve.deploying.files import read_text

    found = schema.read(read_text(file), file)
    for note in found.notes():
        click.echo(f"Note: {note}", err=True)
    names = ", ".join(app.name for app in found.applications) or "none"
    click.echo(f"{file} is valid. Applications: {names}.")


@config.command(
    name="schema",
    cls=Command,
    examples=("qserve config schema > serve.schema.json   # for an editor",),
)
def print_schema() -> None:
    """Print the JSON Schema of the config file."""
    from qserve.schema import ServeDeploySchema

    click.echo(json.dumps(ServeDeploySchema.model_json_schema(), indent=2))
