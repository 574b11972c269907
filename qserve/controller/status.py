"""What `serve.status()` says of applications and deployments, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from qserve.controller.placement import Key
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
    DeploymentStatus.DEPLOY_FAILED: StatusTrigger.UNSPECIFIED,
}
SCALING = frozenset({DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING})


def fresh(
    spec: DeploymentSpec, before: DeploymentStatusInfo | None, target: int, *, reconfigures: bool
) -> DeploymentStatusInfo:
    """The status at the beginning of a deploy.

    reconfigures  whether replicas of this version are to be told other options
    """
    has_run = before is not None and before.started and before.version == spec.version
    status = DeploymentStatus.UPDATING
    if has_run and not reconfigures and before is not None and before.status_trigger is not StatusTrigger.DELETING:
        status = _scaling(before.replicas, target) or DeploymentStatus.UPDATING
    return DeploymentStatusInfo(
        status=status,
        status_trigger=StatusTrigger.CONFIG_UPDATE_STARTED,
        version=spec.version,
        replicas=target,
    )


def scaled(info: DeploymentStatusInfo, target: int) -> DeploymentStatusInfo:
    """The status when the autoscaler wants another number of replicas than before."""
    if target == info.replicas:
        return info
    update: dict[str, object] = {"replicas": target}
    if info.status is DeploymentStatus.HEALTHY or info.status in SCALING:
        update["status"] = _scaling(info.replicas, target)
        if info.status is DeploymentStatus.HEALTHY:
            update["status_trigger"] = StatusTrigger.AUTOSCALING
    return info.model_copy(update=update)


def _scaling(before: int, after: int) -> DeploymentStatus | None:
    if after == before:
        return None
    return DeploymentStatus.UPSCALING if after > before else DeploymentStatus.DOWNSCALING


def has_failed(spec: DeploymentSpec, info: DeploymentStatusInfo, *, is_update: bool) -> bool:
    """Whether starting is given up: it failed as often as is allowed, and has never run or old replicas still serve.

    is_update  whether replicas of an older version serve
    """
    allowed = min(spec.config.max_constructor_retry_count, 3 * info.replicas)
    return info.failures >= allowed > 0 and (is_update or not info.started)


def failed(info: DeploymentStatusInfo, message: str, before: DeploymentStatusInfo) -> DeploymentStatusInfo:
    """The status of a deploy that is given up. What was said of it first stays: `before` is its status until now."""
    update = {"status": DeploymentStatus.DEPLOY_FAILED, "status_trigger": StatusTrigger.REPLICA_STARTUP_FAILED}
    if (before.status, before.status_trigger) == (update["status"], update["status_trigger"]):
        message = before.message
    return info.model_copy(update={**update, "message": message})


def complete(info: DeploymentStatusInfo) -> DeploymentStatusInfo:
    """The status of a deployment that is as it is wanted."""
    trigger = COMPLETED.get(info.status, info.status_trigger)
    update = {"status": DeploymentStatus.HEALTHY, "status_trigger": trigger, "message": "", "failures": 0}
    return info.model_copy(update=update)


def summary(
    app: AppSpec, infos: Mapping[str, DeploymentStatusInfo], closing: Mapping[str, DeploymentStatusInfo]
) -> ApplicationStatusInfo:
    """The application's status, from those of the deployments that it wants."""
    states = {info.status for info in infos.values()}
    if DeploymentStatus.DEPLOY_FAILED in states:
        status = ApplicationStatus.DEPLOY_FAILED
    elif DeploymentStatus.UNHEALTHY in states:
        status = ApplicationStatus.UNHEALTHY
    elif any(map(_is_deploying, infos.values())):
        status = ApplicationStatus.DEPLOYING
    else:
        status = ApplicationStatus.RUNNING
    messages = [f"{name}: {info.message}" for name, info in infos.items() if info.message]
    return ApplicationStatusInfo(
        status=status,
        message="\n".join(messages),
        last_deployed_time_s=app.deployed_at_s,
        deploy_id=app.deploy_id,
        deployments={**infos, **closing},
    )


def _is_deploying(info: DeploymentStatusInfo) -> bool:
    """The autoscaler's changes are no deploys: an application goes on to be RUNNING with them."""
    by_config = info.status in SCALING and info.status_trigger is not StatusTrigger.AUTOSCALING
    return info.status is DeploymentStatus.UPDATING or by_config


def idle_failures(statuses: Mapping[str, ApplicationStatusInfo]) -> frozenset[Key]:
    """The queues that nobody serves, because the deployment failed and nothing of it runs."""
    serving = (ReplicaState.RUNNING, ReplicaState.UPDATING)
    return frozenset(
        (app, name)
        for app, status in statuses.items()
        for name, info in status.deployments.items()
        if info.status is DeploymentStatus.DEPLOY_FAILED and not any(map(info.replica_states.get, serving))
    )
