"""What is there: the status with its queues, the replicas, and what the autoscaler decided. Two round trips at most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from qserve.deploying.waiting import until
from qserve.spec import (
    ApplicationStatus,
    ApplicationStatusInfo,
    AppSpec,
    Decision,
    ReplicaRecord,
    ReplicaState,
    ServeStatus,
)
from qserve.store import calls
from qserve.store.fixed import fixed_statuses
from qserve.store.state import ClusterState
from qserve.wire.keys import deployment_keys


async def status(state: ClusterState) -> ServeStatus:
    """What `serve.status()` returns. Exact queues, each as it was at one moment."""
    statuses, names, (alive, _lapsed) = await asyncio.gather(
        state.statuses(), state.link.call("HKEYS", state.keys.apps), state.nodes()
    )
    new = {name.decode(errors="replace") for name in names} - statuses.keys()
    shown, loads = await asyncio.gather(_not_led(state, new), _loads(state, statuses))
    counted = {app: _with_loads(app, info, loads) for app, info in statuses.items()}
    if shown:  # those of workers that host by themselves have queues, too
        loads = await _loads(state, shown)
        counted |= {app: _with_loads(app, info, loads) for app, info in shown.items()}
    return ServeStatus(applications=counted, nodes=tuple(alive.values()))


async def watch(state: ClusterState, on_status: Callable[[ServeStatus], None]) -> None:
    """Tell the status, and again whenever an event has changed it. Ends only with an error.

    Queues change with every call and no event tells of them: they are left out.
    """
    seen: list[ServeStatus] = []

    async def look() -> bool:
        found = await status(state)
        apps = {name: _with_loads(name, info, {}) for name, info in found.applications.items()}
        found = found.model_copy(update={"applications": apps})
        if not seen or seen[-1] != found:
            seen[:] = [found]
            on_status(found)
        return False

    await until(state, look, None)


async def replicas(state: ClusterState) -> list[ReplicaRecord]:
    """Every replica, also those that their worker has not begun to start; by application and deployment."""
    seen = await state.snapshot()
    found = dict(seen.replicas)
    for replica_id, assigned in seen.assignments.items():
        if replica_id not in found:
            found[replica_id] = ReplicaRecord(**assigned.model_dump(), state=ReplicaState.STARTING)
    return sorted(found.values(), key=lambda replica: (replica.app, replica.deployment, replica.replica_id))


async def decisions(state: ClusterState, app: str) -> dict[str, list[Decision]]:
    """What the autoscaler decided for the deployments of an application, by APP.DEPLOYMENT, newest first.

    Raises ApplicationNotFound.
    """
    spec = await state.app(app)
    pipe = await state.link.ready()
    names = [deployment.name for deployment in spec.deployments]
    lists = await asyncio.gather(*(pipe.call("LRANGE", state.keys.decisions(app, name), 0, -1) for name in names))
    return {
        f"{app}.{name}": [Decision.model_validate_json(raw) for raw in raws]
        for name, raws in zip(names, lists, strict=True)
    }


async def _not_led(state: ClusterState, names: set[str]) -> dict[str, ApplicationStatusInfo]:
    """The statuses that no leader writes: of applications that are not taken up yet, or that are hosted without one."""
    if not names:
        return {}
    seen = await state.snapshot()
    fixed = fixed_statuses(seen)
    wanted = {name: app for name, app in seen.apps.items() if name in names}
    return {name: fixed.get(name) or _not_started(app) for name, app in wanted.items()}


def _not_started(app: AppSpec) -> ApplicationStatusInfo:
    return ApplicationStatusInfo(status=ApplicationStatus.NOT_STARTED, last_deployed_time_s=app.deployed_at_s)


async def _loads(
    state: ClusterState, infos: Mapping[str, ApplicationStatusInfo]
) -> dict[tuple[str, str], tuple[int, int]]:
    """How many calls wait and run in each deployment's queue, asked for all at once."""
    pipe = await state.link.ready()
    paths = [(app, name) for app, info in infos.items() for name in info.deployments]
    keys = (deployment_keys(state.keys.namespace, *path) for path in paths)
    loads = await asyncio.gather(*(calls.load_of(pipe, each) for each in keys))
    return {path: (load.waiting, load.running) for path, load in zip(paths, loads, strict=True)}


def _with_loads(
    app: str, info: ApplicationStatusInfo, loads: Mapping[tuple[str, str], tuple[int, int]]
) -> ApplicationStatusInfo:
    deployments = {}
    for name, told in info.deployments.items():
        waiting, running = loads.get((app, name), (0, 0))
        deployments[name] = told.model_copy(update={"waiting": waiting, "running": running})
    return info.model_copy(update={"deployments": deployments})
