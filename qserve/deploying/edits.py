"""What an operator changes of an application that is deployed: from one AppSpec to the next. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qserve.errors import DeploymentNotFound, UsageError
from qserve.graph import restarted
from qserve.spec import AppSpec, DeploymentSpec

Edit = Callable[[AppSpec], AppSpec]


@dataclass(frozen=True, slots=True)
class Scale:
    """Another number of replicas. Raises UsageError for a deployment that is autoscaled."""

    deployment: str
    replicas: int

    def __call__(self, app: AppSpec) -> AppSpec:
        return _each(app, self.deployment, self._scaled)

    def _scaled(self, spec: DeploymentSpec) -> DeploymentSpec:
        if spec.config.autoscaling_config is not None:
            raise UsageError(
                f"{spec.app}.{spec.name} is autoscaled: the autoscaler chooses the number of its replicas. Change "
                "min_replicas and max_replicas of its autoscaling_config and deploy, or deploy it with num_replicas."
            )
        config = spec.config.model_copy(update={"num_replicas": self.replicas})
        return spec.model_copy(update={"config": config, "replicas": self.replicas})


@dataclass(frozen=True, slots=True)
class Pause:
    """Replicas take no calls, or take them again. `deployment` None: all of the application's."""

    deployment: str | None
    paused: bool

    def __call__(self, app: AppSpec) -> AppSpec:
        return _each(app, self.deployment, lambda spec: spec.model_copy(update={"paused": self.paused}))


@dataclass(frozen=True, slots=True)
class Restart:
    """New replicas of the same code take the place of the old ones. `deployment` None: all of the application's.

    mark  unlike those of other restarts
    """

    deployment: str | None
    mark: str

    def __call__(self, app: AppSpec) -> AppSpec:
        return _each(
            app, self.deployment, lambda spec: spec.model_copy(update={"version": restarted(spec.version, self.mark)})
        )


def earlier(app: str, versions: Sequence[AppSpec], back: int) -> AppSpec:
    """The application as it was `back` versions ago; a paused one takes calls again.

    versions  the last ones, the present one first
    Raises UsageError when there is no such version.
    """
    if not 1 <= back < len(versions):
        if len(versions) < 2:
            raise UsageError(f"Application {app!r} has no earlier version: it was deployed once.")
        there = ", ".join(str(number) for number in range(1, len(versions)))
        raise UsageError(
            f"Application {app!r} cannot go back by {back}, only by {there}. `qserve rollback {app} --list` shows what "
            "that is."
        )
    return Pause(None, paused=False)(versions[back])


def _each(app: AppSpec, name: str | None, change: Callable[[DeploymentSpec], DeploymentSpec]) -> AppSpec:
    """The application with one of its deployments changed, or all. Raises DeploymentNotFound that lists them."""
    if name is not None and app.deployment(name) is None:
        raise DeploymentNotFound(
            f"Deployment {name!r} does not exist in application {app.name!r}. "
            f"It has: {[spec.name for spec in app.deployments]}."
        )
    changed = tuple(change(spec) if name in (None, spec.name) else spec for spec in app.deployments)
    return app.model_copy(update={"deployments": changed})
