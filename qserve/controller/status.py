"""What `serve.status()` says of applications and deployments, and what follows from it. Pure."""

from __future__ import annotations

from qserve.spec import (
    ApplicationStatus,
    ApplicationStatusInfo,
    AppSpec,
    DeploymentSpec,
    DeploymentStatus,
    DeploymentStatusInfo,
    ReplicaState,
    StatusTrigger,
)

NOTHING = ApplicationStatusInfo(status=ApplicationStatus.NOT_STARTED)
COMPLETED = {
    DeploymentStatus.UPDATING: StatusTrigger.CONFIG_UPDATE_COMPLETED,
    DeploymentStatus.UPSCALING: StatusTrigger.UPSCALE_COMPLETED,
    DeploymentStatus.DOWNSCALING: StatusTrigger.DOWNSCALE_COMPLETED,
    DeploymentStatus.UNHEALTHY: StatusTrigger.UNSPECIFIED,
}
_DEPLOYING = frozenset({DeploymentStatus.UPDATING, DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING})


def fresh(spec: DeploymentSpec, before: DeploymentStatusInfo | None) -> DeploymentStatusInfo:
    """The status at the beginning of a deploy."""
    has_run = before is not None and before.started and before.version == spec.version
    status = DeploymentStatus.UPDATING
    if has_run and before is not None and before.status_trigger is not StatusTrigger.DELETING:
        if spec.replicas > before.replicas:
            status = DeploymentStatus.UPSCALING
        elif spec.replicas < before.replicas:
            status = DeploymentStatus.DOWNSCALING
    return DeploymentStatusInfo(
        status=status,
        status_trigger=StatusTrigger.CONFIG_UPDATE_STARTED,
        version=spec.version,
        replicas=spec.replicas,
        started=has_run,
    )


def has_failed(spec: DeploymentSpec, info: DeploymentStatusInfo) -> bool:
    """Whether starting is given up: this version has never run, and has failed as often as is allowed."""
    allowed = min(spec.config.max_constructor_retry_count, 3 * spec.replicas)
    return not info.started and info.failures >= allowed > 0


def summary(
    app: AppSpec, infos: dict[str, DeploymentStatusInfo], closing: dict[str, DeploymentStatusInfo]
) -> ApplicationStatusInfo:
    """The application's status, from those of the deployments that it wants."""
    states = {info.status for info in infos.values()}
    if DeploymentStatus.DEPLOY_FAILED in states:
        status = ApplicationStatus.DEPLOY_FAILED
    elif DeploymentStatus.UNHEALTHY in states:
        status = ApplicationStatus.UNHEALTHY
    elif states & _DEPLOYING:
        status = ApplicationStatus.DEPLOYING
    else:
        status = ApplicationStatus.RUNNING
    messages = [f"{name}: {info.message}" for name, info in infos.items() if info.message]
    return ApplicationStatusInfo(
        status=status,
        message="\n".join(messages),
        last_deployed_time_s=app.deployed_at_s,
        deploy_id=app.deploy_id,
        deployments=infos | closing,
    )


def idle_failures(statuses: dict[str, ApplicationStatusInfo]) -> frozenset[tuple[str, str]]:
    """The (application, deployment) queues that nobody serves, because the deployment failed and nothing of it runs."""
    return frozenset(
        (app, name)
        for app, status in statuses.items()
        for name, info in status.deployments.items()
        if info.status is DeploymentStatus.DEPLOY_FAILED and not info.replica_states.get(ReplicaState.RUNNING)
    )
