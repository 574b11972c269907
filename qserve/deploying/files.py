"""Applications by name: of a config file, or MODULE:APP. Apart from `targets`: the file's models are slow to import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qserve import graph, schema, target
from qserve.deploying.targets import RunTarget, Unsaid
from qserve.errors import SettingsError

_FILES = frozenset({".yaml", ".yml", ".json"})


def is_config(source: str) -> bool:
    """Whether it names a config file, not MODULE:APP."""
    return Path(source).suffix in _FILES


def from_config(path: str) -> tuple[list[RunTarget], list[str]]:
    """The applications of a config file, and what it asks for and does not get.

    Raises SettingsError with every mistake; what `target.load` raises for an application that cannot be built.
    """
    config = schema.read(read_text(path), path)
    logging_config = config.logging_config
    return [_target(app, app.logging_config or logging_config) for app in config.applications], config.notes()


def from_import_path(
    path: str, arguments: Mapping[str, Any], *, name: str, route_prefix: str | Unsaid | None
) -> RunTarget:
    """The application that MODULE:APP names. Raises what `target.load` raises."""
    built = target.load(path, arguments)
    source = schema.source_of(path, arguments)
    return RunTarget(built, name, route_prefix, overrides=graph.Overrides(source=source))


def read_text(path: str) -> str:
    """A config file's text. Raises SettingsError when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The config file {path!r} cannot be read: {error}") from error


def _target(app: schema.ServeApplicationSchema, logging_config: schema.LoggingConfig | None) -> RunTarget:
    overrides = graph.Overrides(
        options={deployment.name: deployment.overrides() for deployment in app.deployments},
        env_vars=app.env_vars,
        source=app.source,
    )
    route_prefix = app.route_prefix if "route_prefix" in app.model_fields_set else Unsaid.ROUTE
    return RunTarget(target.load(app.import_path, app.args), app.name, route_prefix, logging_config, overrides)
