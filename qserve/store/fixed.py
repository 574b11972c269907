"""Applications that workers host by themselves: what a leader does for the others, and nobody does for these.

Their status is computed by whoever asks; their queues are closed by the workers that leave, and by who deletes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from qserve.errors import DeploymentUnavailableError
from qserve.spec import (
    ApplicationStatus,
    ApplicationStatusInfo,
    AppSpec,
    DeploymentSpec,
    DeploymentStatus,
    DeploymentStatusInfo,
    ReplicaRecord,
    ReplicaState,
)
from qserve.store import calls
from qserve.store.closing import answer_all
from qserve.store.reclaim import Reclaimer
from qserve.store.snapshot import Snapshot
from qserve.store.state import ClusterState
from qserve.wire.keys import deployment_keys

_GONE = frozenset({ReplicaState.FAILED, ReplicaState.DIED})


def fixed_statuses(seen: Snapshot) -> dict[str, ApplicationStatusInfo]:
    """The status of each fixed application, from the records of its replicas on workers that are alive. Pure."""
    return {name: _status(app, seen) for name, app in seen.apps.items() if app.fixed}


def _status(app: AppSpec, seen: Snapshot) -> ApplicationStatusInfo:
    infos = {}
    for spec in app.deployments:
        of_this = (r for r in seen.replicas.values() if (r.app, r.deployment) == (app.name, spec.name))
        infos[spec.name] = _deployment_status(spec, [r for r in of_this if r.node_id in seen.nodes])
    states = {info.status for info in infos.values()}
    if DeploymentStatus.UNHEALTHY in states:
        status = ApplicationStatus.UNHEALTHY
    elif DeploymentStatus.UPDATING in states:
        status = ApplicationStatus.DEPLOYING
    else:
        status = ApplicationStatus.RUNNING
    return ApplicationStatusInfo(
        status=status,
        message="\n".join(f"{name}: {info.message}" for name, info in infos.items() if info.message),
        last_deployed_time_s=app.deployed_at_s,
        deploy_id=app.deploy_id,
        deployments=infos,
    )


def _deployment_status(spec: DeploymentSpec, replicas: list[ReplicaRecord]) -> DeploymentStatusInfo:
    """HEALTHY when all of its replicas serve, UNHEALTHY while one that failed is not replaced."""
    staying = [r for r in replicas if r.state is not ReplicaState.STOPPING]
    serving = sum(r.serves for r in staying)
    failed = [r for r in staying if r.state in _GONE]
    if failed:
        status, message = DeploymentStatus.UNHEALTHY, failed[-1].message
    elif not staying:
        status = DeploymentStatus.UPDATING
        message = "No worker hosts it: `qserve worker MODULE:APP --replicas " + f"{spec.name}=1` starts one."
    elif serving < len(staying):
        status, message = DeploymentStatus.UPDATING, f"{serving} of {len(staying)} replicas are running."
    else:
        status, message = DeploymentStatus.HEALTHY, ""
    return DeploymentStatusInfo(
        status=status,
        replica_states=dict(Counter(r.state.value for r in replicas)),
        message=message,
        version=spec.version,
        replicas=len(staying),
        failures=len(failed),
        started=serving > 0,
    )


async def close_queues(state: ClusterState, app: str, deployments: Collection[DeploymentSpec]) -> bool:
    """Answer the calls that wait for a deleted application; once no replica of it is left, its queues and code go.

    Safe to do by several at once. False while there are replicas: close again when they have left.
    """
    seen = await state.snapshot()
    is_over = not any(r.app == app and r.node_id in seen.nodes and r.state not in _GONE for r in seen.replicas.values())
    for spec in deployments:
        keys = deployment_keys(state.keys.namespace, app, spec.name)
        error = DeploymentUnavailableError(
            f"Deployment {spec.name!r} of application {app!r} was deleted before the call ran."
        )
        await Reclaimer(state.link, state.ring, keys, max_retries=0).abandoned()
        await answer_all(state.link, state.ring, keys, error)
        # Before its end a replica would make the queue again: it takes its loss for that of Redis.
        is_over = is_over and await calls.retire(state.link, keys)
    if is_over:
        await state.drop_code(spec.version for spec in deployments)
    return is_over
