"""`qserve worker MODULE:APP`: what a worker hosts that nobody assigns anything to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import click

from qserve import graph, target
from qserve.deploying.targets import RunTarget, build
from qserve.node.fixed import FixedApp


def load(app: str, arguments: Mapping[str, str], *, name: str, replicas: Mapping[str, str]) -> FixedApp:
    """The application as this worker shall host it. Raises UsageError, DeployFailed with the user's traceback.

    arguments  of its builder
    replicas   how many of each deployment, as they were typed
    """
    counts = {deployment: _count(deployment, text) for deployment, text in replicas.items()}
    sys.path.insert(0, str(Path.cwd()))
    source = " ".join((app, *(f"{key}={value}" for key, value in arguments.items())))
    (built,) = build([RunTarget(target.load(app, arguments), name=name, overrides=graph.Overrides(source=source))])
    return FixedApp.of(built.flat, counts)


def _count(deployment: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise click.UsageError(f"--replicas {deployment}={text}: how many there are is a whole number, 0 or more.")
    return int(text)
