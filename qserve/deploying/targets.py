"""What is to be deployed, before it is compared with what is there."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from pydantic import BaseModel

from qserve import graph
from qserve.deployment import Application, checked_route_prefix
from qserve.errors import UsageError

DEFAULT_APP = "default"


class Unsaid(Enum):
    """What was left out, where None means something else."""

    ROUTE = "'/' if no other application has it, else none"


@dataclass(frozen=True)
class RunTarget:
    """One of several applications for `run_many`; the fields are those of `run`.

    overrides  what goes before the code's options, as a config file says it
    """

    target: Application
    name: str = DEFAULT_APP
    route_prefix: str | Unsaid | None = Unsaid.ROUTE
    logging_config: dict[str, Any] | BaseModel | None = None
    overrides: graph.Overrides = field(default_factory=graph.Overrides)


@dataclass(frozen=True, slots=True)
class Built:
    """An application that is ready to be deployed.

    has_route  its route_prefix was said, and must be free; else it goes without one where it is taken
    """

    flat: graph.FlatApp
    has_route: bool = True

    @property
    def name(self) -> str:
        """The application's."""
        return self.flat.spec.name


def build(targets: Sequence[RunTarget], *, force: bool = False) -> list[Built]:
    """Make applications ready to be deployed: their names checked, their code pickled. Nothing is deployed yet.

    Raises TypeError for anything but an Application, UsageError, SerializationError; SettingsError for overrides that
    do not fit.
    """
    for each in targets:
        if not isinstance(each.target, Application):
            raise TypeError(
                "`serve.run` expects an `Application` returned by `Deployment.bind()`. "
                f"It got {each.target!r}; did you forget .bind()?"
            )
        _check_name(each.name)
    if len({each.name for each in targets}) < len(targets):
        raise UsageError(f"Application names must be unique: {sorted(each.name for each in targets)}.")
    return [_built(each, force=force) for each in targets]


def _built(each: RunTarget, *, force: bool) -> Built:
    has_route = not isinstance(each.route_prefix, Unsaid)
    overrides = each.overrides
    if (said := each.logging_config) is not None:
        logging_config = said.model_dump(mode="json", exclude_unset=True) if isinstance(said, BaseModel) else said
        overrides = replace(overrides, logging_config=logging_config)
    flat = graph.flatten(
        each.target,
        name=each.name,
        deploy_id=secrets.token_hex(8),
        now_s=time.time(),
        route_prefix="/" if isinstance(each.route_prefix, Unsaid) else checked_route_prefix(each.route_prefix),
        force=force,
        overrides=overrides,
    )
    return Built(flat, has_route=has_route)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name or set(name) & set(".#:{}~ \n\t/"):
        raise UsageError(f"The application name {name!r} is empty, or holds one of '.#:{{}}~/' or a space.")
