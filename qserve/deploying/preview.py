"""What a deploy would change, deployment by deployment, and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from qserve.graph import same_code
from qserve.options import RESTARTING
from qserve.spec import AppSpec, DeploymentSpec

# Told by the number of replicas, in words of their own.
_COUNTS = frozenset({"num_replicas"})


class Verb(StrEnum):
    """What becomes of a deployment, from nothing to the most that can happen to it."""

    KEEP = "unchanged"
    SCALE = "scale"
    UPDATE = "update in place"
    RESTART = "restart"
    CREATE = "create"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a plan.

    path  application, or application.deployment
    why   what differs, in words; empty when nothing does
    """

    path: str
    verb: Verb
    why: str = ""


def preview(name: str, before: AppSpec | None, after: AppSpec | None) -> list[Step]:
    """The steps from one application to another of that name. None: it is not wanted."""
    old = {} if before is None else {spec.name: spec for spec in before.deployments}
    new = {} if after is None else {spec.name: spec for spec in after.deployments}
    steps = [_step(old.get(spec.name), spec) for spec in new.values()]
    steps += [
        Step(f"{name}.{gone}", Verb.DELETE, "not in the application any more")
        for gone in sorted(old.keys() - new.keys())
    ]
    if after is None:
        return [Step(step.path, step.verb, "its application goes") for step in steps]
    if before is not None and before.fixed and not after.fixed:
        steps.append(Step(name, Verb.RESTART, "autoscalers take it over; workers that hosted it by themselves end"))
    if before is not None and before.route_prefix != after.route_prefix:
        steps.append(Step(name, Verb.UPDATE, f"route_prefix {_change(before.route_prefix, after.route_prefix)}"))
    return steps


def differences(before: AppSpec, after: AppSpec) -> str:
    """What differs, in a line."""
    steps = [step for step in preview(after.name, before, after) if step.verb is not Verb.KEEP]
    told = (f"{step.path.partition('.')[2] or step.path}: {step.why or step.verb}" for step in steps)
    return "; ".join(told) or "nothing"


def _step(before: DeploymentSpec | None, after: DeploymentSpec) -> Step:
    path = f"{after.app}.{after.name}"
    if before is None:
        return Step(path, Verb.CREATE, _replicas(after))
    counts = _counts(before, after)
    options = _options(before, after)
    if before.version != after.version:
        return Step(path, Verb.RESTART, ", ".join([*_restarting(before, after, options), *counts]))
    told = [*_told(options), *_paused(before, after)]
    if told:
        return Step(path, Verb.UPDATE, ", ".join([*told, *counts]))
    return Step(path, Verb.SCALE if counts else Verb.KEEP, ", ".join(counts))


def _restarting(before: DeploymentSpec, after: DeploymentSpec, options: dict[str, tuple[Any, Any]]) -> Iterable[str]:
    """Why the replicas start anew; what else changes is told too."""
    told = _told(options)
    if before.env_vars != after.env_vars:  # their values may be secrets
        names = {name for name, _ in before.env_vars.items() ^ after.env_vars.items()}
        told.insert(0, f"env_vars {', '.join(sorted(names))}")
    if same_code(before.version, after.version):
        told.insert(0, "restarted, the code is the same")
    elif not (RESTARTING & options.keys()) and before.env_vars == after.env_vars:
        told.insert(0, "its code or its arguments")
    return [*told, *_paused(before, after)]


def _options(before: DeploymentSpec, after: DeploymentSpec) -> dict[str, tuple[Any, Any]]:
    """The options that differ, with their values before and after; without the number of replicas."""
    old, new = (spec.config.model_dump(mode="json") for spec in (before, after))
    return {name: (old[name], new[name]) for name in new if old[name] != new[name] and name not in _COUNTS}


def _told(options: dict[str, tuple[Any, Any]]) -> list[str]:
    """Each option's change; of one that is a dict, only what changes in it."""
    told = []
    for name, (before, after) in options.items():
        if isinstance(before, dict) and isinstance(after, dict):
            keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            told += [f"{name}.{key} {_change(before.get(key), after.get(key))}" for key in keys]
        else:
            told.append(f"{name} {_change(before, after)}")
    return told


def _counts(before: DeploymentSpec, after: DeploymentSpec) -> list[str]:
    if before.replicas == after.replicas or after.config.autoscaling_config is not None:
        return []
    return [f"{before.replicas} -> {_replicas(after)}"]


def _paused(before: DeploymentSpec, after: DeploymentSpec) -> list[str]:
    if before.paused == after.paused:
        return []
    return ["paused" if after.paused else "resumed"]


def _replicas(spec: DeploymentSpec) -> str:
    return f"{spec.replicas} replica{'' if spec.replicas == 1 else 's'}"


def _change(before: Any, after: Any) -> str:
    return f"{_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
