"""`run`, `delete`, `status` and what else people do to applications: desired state goes in, handles come out."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypedDict, TypeVar, Unpack

from pydantic import BaseModel

from qserve import local
from qserve.client import portal
from qserve.client.handle import DeploymentHandle
from qserve.context import get_replica_context, in_replica
from qserve.deploying import desired, edits, overview, waiting
from qserve.deploying.desired import Plan
from qserve.deploying.targets import DEFAULT_APP, Built, RunTarget, Unsaid
from qserve.deploying.targets import build as build_targets
from qserve.deployment import Application
from qserve.errors import ApplicationNotFound, DeploymentNotFound, QserveError, UsageError
from qserve.spec import ApplicationStatusInfo, AppSpec, Decision, ReplicaRecord, ServeStatus
from qserve.store.state import ClusterState

__all__ = [
    "DEFAULT_APP",
    "Built",
    "Plan",
    "Progress",
    "RunTarget",
    "Unsaid",
    "Waits",
    "build",
    "decisions",
    "delete",
    "deploy",
    "get_app_handle",
    "get_deployment_handle",
    "get_handle_at",
    "history",
    "pause",
    "preview",
    "replicas",
    "restart",
    "resume",
    "rollback",
    "run",
    "run_many",
    "scale",
    "shutdown",
    "shutdown_async",
    "start",
    "status",
    "wanted",
    "watch",
]
T = TypeVar("T")
Progress = Callable[[ApplicationStatusInfo], None]


class Waits(TypedDict, total=False):
    """How a change is waited for.

    wait         False: return at once, it goes on by itself
    timeout_s    over it DeployTimeout, which says what is waited for; 60, None waits for ever
    on_plan      called with what is done, before it is waited for
    on_progress  called with an application's name and status whenever that changes
    """

    wait: bool
    timeout_s: float | None
    on_plan: Callable[[Plan], None]
    on_progress: waiting.Progress | None


def run(  # noqa: PLR0913 (Ray Serve's signature)
    target: Application,
    blocking: bool = False,  # noqa: FBT001, FBT002 (Ray Serve's signature)
    name: str = DEFAULT_APP,
    route_prefix: str | Unsaid | None = Unsaid.ROUTE,
    logging_config: dict[str, Any] | BaseModel | None = None,
    _local_testing_mode: bool = False,  # noqa: FBT001, FBT002 (Ray Serve's signature)
    external_scaler_enabled: bool = False,  # noqa: ARG001, FBT001, FBT002 (Ray Serve's; `scale` needs no switch here)
    controller_options: Any = None,  # noqa: ARG001 (Ray Serve's; it has a controller process to set up)
    *,
    force: bool = False,
    timeout_s: float | None = 60.0,
    on_progress: Progress | None = None,
) -> DeploymentHandle[Any]:
    """Deploy an application, wait until it runs, and return the handle of its outermost deployment.

    Without QSERVE_REDIS_URL an embedded cluster starts with the first call and ends with the process.

    blocking        stay here until Ctrl-C, which raises KeyboardInterrupt
    name            an application of this name is replaced; others are untouched
    route_prefix    "/" unless another application has it; one that is said must be free
    logging_config  for the deployments that say nothing of logging
    force           restart the replicas even if code, arguments and options are the same
    timeout_s       over it DeployTimeout, which says what is waited for; None waits for ever
    on_progress     called with the application's status whenever it changes
    Raises TypeError for anything but an Application, SerializationError when its code cannot travel, DeployFailed (a
    RuntimeError) with the replica's traceback when a constructor fails.
    """
    if _local_testing_mode:
        raise UsageError(
            "There is no local testing mode. Without QSERVE_REDIS_URL serve.run() starts a whole cluster on this host "
            "in a second, which ends with the process: leave _local_testing_mode out."
        )

    def tell(_name: str, info: ApplicationStatusInfo) -> None:
        if on_progress is not None:
            on_progress(info)

    built = build([RunTarget(target, name, route_prefix, logging_config)], force=force)
    deploy(built, timeout_s=timeout_s, on_progress=tell)
    return _stay(blocking, built)[0]


def run_many(
    targets: Sequence[RunTarget],
    blocking: bool = False,  # noqa: FBT001, FBT002 (Ray Serve's signature)
    wait_for_ingress_deployment_creation: bool = True,  # noqa: ARG001, FBT001, FBT002 (Ray Serve's; it is there at once)
    wait_for_applications_running: bool = True,  # noqa: FBT001, FBT002 (Ray Serve's signature)
    *,
    force: bool = False,
    timeout_s: float | None = 60.0,
) -> list[DeploymentHandle[Any]]:
    """Deploy several applications in one step, wait until all of them run, and return their handles.

    wait_for_applications_running  False: return at once; calls wait in their queues
    Raises what `run` raises, and UsageError when two of them have one name.
    """
    built = build(targets, force=force)
    deploy(built, wait=wait_for_applications_running, timeout_s=timeout_s)
    return _stay(blocking, built)


def build(targets: Sequence[RunTarget], *, force: bool = False) -> list[Built]:
    """Make applications ready to be deployed: their names checked, their code pickled. Nothing is deployed yet.

    Raises TypeError for anything but an Application, UsageError, SerializationError; SettingsError for overrides that
    do not fit.
    """
    _refuse_while_loading()
    return build_targets(targets, force=force)


def deploy(built: Sequence[Built], *, only_these: bool = False, **how: Unpack[Waits]) -> Plan:
    """Deploy what was built, in one step. Returns what was done.

    only_these  all other applications of the namespace go
    Raises QserveError when a route_prefix belongs to another application, DeployFailed, DeployTimeout.
    """
    local.ensure()
    return _change(lambda state: desired.deploy(state, built, only_these=only_these), how)


def preview(built: Sequence[Built], *, only_these: bool = False) -> Plan:
    """What `deploy` would do."""
    local.ensure()
    return _on_portal(lambda state: desired.work_out(state, built, only_these=only_these))


def rollback(app: str, to: int | None = None, **how: Unpack[Waits]) -> Plan:
    """Deploy an application as it was before; new replicas serve before the old ones go.

    to  how many versions back, 1 to 5; None is the one before
    Raises ApplicationNotFound; UsageError when there is no such version; what `deploy` raises.
    """
    deploy_id = secrets.token_hex(8)
    return _change(lambda state: desired.roll_back(state, app, 1 if to is None else to, deploy_id), how)


def history(app: str) -> list[AppSpec]:
    """The last versions of an application, the present one first. Raises ApplicationNotFound."""

    async def read(state: ClusterState) -> list[AppSpec]:
        return await state.history.versions(app) or [await state.app(app)]

    return _on_portal(read)


def scale(app: str, deployment: str, num_replicas: int, **how: Unpack[Waits]) -> Plan:
    """Change how many replicas a deployment has, until the next deploy. Nothing restarts.

    Raises UsageError for one that is autoscaled, or for fewer than 1; ApplicationNotFound, DeploymentNotFound.
    """
    if num_replicas < 1:
        raise UsageError("A deployment has at least 1 replica: `pause` keeps calls waiting, `delete` takes it down.")
    return _edit(app, edits.Scale(deployment, num_replicas), how)


def pause(app: str, deployment: str | None = None, **how: Unpack[Waits]) -> Plan:
    """Have the replicas of a deployment, or of all, take no more calls: what is called waits until `resume`."""
    return _edit(app, edits.Pause(deployment, paused=True), how)


def resume(app: str, deployment: str | None = None, **how: Unpack[Waits]) -> Plan:
    """Have the replicas of a deployment, or of all, take calls again."""
    return _edit(app, edits.Pause(deployment, paused=False), how)


def restart(app: str, deployment: str | None = None, **how: Unpack[Waits]) -> Plan:
    """Replace the replicas of a deployment, or of all, by new ones of the same code; new ones serve first."""
    return _edit(app, edits.Restart(deployment, secrets.token_hex(4)), how)


def start(*_args: Any, **_options: Any) -> None:
    """Start the embedded cluster if no other is named; `run` does it by itself. Ray Serve's options change nothing."""
    local.ensure()


def delete(name: str, _blocking: bool = True, *, timeout_s: float = 60.0) -> None:  # noqa: FBT001, FBT002 (Ray Serve's signature)
    """Take an application down and wait until it is gone. An unknown name does nothing. Raises DeployTimeout."""
    if _reaches_cluster():
        _on_portal(lambda state: _delete(state, [name], timeout_s, wait=_blocking))


def shutdown(*, timeout_s: float = 60.0) -> None:
    """Take all applications of the namespace down; end the embedded cluster if this process has one."""
    if not _reaches_cluster():
        return
    is_drained = False
    try:
        _on_portal(lambda state: _delete(state, None, timeout_s))
        is_drained = True
    finally:
        local.end(at_once=not is_drained)


async def shutdown_async(*, timeout_s: float = 60.0) -> None:
    """The same, without holding up the event loop."""
    await asyncio.to_thread(shutdown, timeout_s=timeout_s)


def status(name: str | None = None) -> ServeStatus:
    """What runs: applications, deployments, replicas, calls, workers. Empty when nothing was started.

    name  only this application; ApplicationNotFound lists those there are
    """
    found = _on_portal(overview.status) if _reaches_cluster() else ServeStatus()
    return found if name is None else _only(found, name)


def watch(on_status: Callable[[ServeStatus], None], name: str | None = None) -> None:
    """Tell the status now and whenever an event changes it; queues are left out. Returns never; Ctrl-C ends it."""

    def tell(found: ServeStatus) -> None:
        on_status(found if name is None else _only(found, name))

    _on_portal(lambda state: overview.watch(state, tell))


def replicas() -> list[ReplicaRecord]:
    """Every replica, by application and deployment."""
    return _on_portal(overview.replicas) if _reaches_cluster() else []


def decisions(app: str) -> dict[str, list[Decision]]:
    """What the autoscaler decided for an application's deployments, by APP.DEPLOYMENT, newest first.

    Raises ApplicationNotFound.
    """
    return _on_portal(lambda state: overview.decisions(state, app))


def wanted(app: str | None = None) -> list[AppSpec]:
    """The applications as they are wanted, or one of them. Raises ApplicationNotFound."""
    if app is not None:
        return [_on_portal(lambda state: state.app(app))]
    found = _on_portal(lambda state: state.wanted())
    return [found[name] for name in sorted(found)]


def get_app_handle(name: str) -> DeploymentHandle[Any]:
    """The handle of an application's outermost deployment. Raises ApplicationNotFound that lists those there are."""
    spec = _on_portal(lambda state: state.app(name))
    return _handle_of(spec, spec.ingress)


def get_deployment_handle(deployment_name: str, app_name: str | None = None) -> DeploymentHandle[Any]:
    """The handle of any deployment. Inside a replica the application may be left out: it is the replica's own.

    Raises DeploymentNotFound (a KeyError), ApplicationNotFound; QserveError without an application name elsewhere.
    """
    if app_name is None:
        if not in_replica():
            raise QserveError("Outside of a replica get_deployment_handle() needs an app_name.")
        app_name = get_replica_context().app_name
    chosen = app_name
    return _handle_of(_on_portal(lambda state: state.app(chosen)), deployment_name)


def get_handle_at(path: str) -> DeploymentHandle[Any]:
    """The handle that APP.DEPLOYMENT or APP.DEPLOYMENT.METHOD names.

    Raises ApplicationNotFound and DeploymentNotFound, which say what there is.
    """
    app, _, rest = path.partition(".")
    spec = _on_portal(lambda state: state.app(app))
    if spec.deployment(rest) is not None or "." not in rest:  # a deployment's name may hold dots
        return _handle_of(spec, rest)
    deployment, _, method = rest.rpartition(".")
    return _handle_of(spec, deployment).options(method_name=method)


def _handle_of(spec: AppSpec, deployment: str) -> DeploymentHandle[Any]:
    known = spec.deployment(deployment)
    if known is None:
        raise DeploymentNotFound(
            f"Deployment {deployment!r} does not exist in application {spec.name!r}. "
            f"It has: {[d.name for d in spec.deployments]}."
        )
    return DeploymentHandle(deployment, spec.name, max_queued_requests=known.config.max_queued_requests)


def _refuse_while_loading() -> None:
    if in_replica() and get_replica_context().servable_object is None:
        raise UsageError(
            "serve.run() was called while a replica imports the module of its deployment. Call it under "
            "`if __name__ == '__main__':`, or in the startup function of your web framework."
        )


def _reaches_cluster() -> bool:
    return portal.settings().redis_url is not None


def _on_portal(work: Callable[[ClusterState], Coroutine[Any, Any, T]]) -> T:
    """Run work on the cluster's state in the portal's thread, and wait for it."""
    door = portal.portal()
    core = door.core
    return door.run(work(ClusterState(core.link, core.settings.namespace, core.ring)))


def _change(make: Callable[[ClusterState], Coroutine[Any, Any, Plan]], how: Waits) -> Plan:
    """Make a change, and wait for it."""

    async def changed(state: ClusterState) -> Plan:
        plan = await make(state)
        if (on_plan := how.get("on_plan")) is not None:
            on_plan(plan)
        if how.get("wait", True):
            timeout_s, on_progress = how.get("timeout_s", 60.0), how.get("on_progress")
            await waiting.reach(state, waiting.Goal(plan.deploys, plan.gone, timeout_s, on_progress))
        return plan

    return _on_portal(changed)


async def _delete(state: ClusterState, names: list[str] | None, timeout_s: float, *, wait: bool = True) -> None:
    deleted = await desired.delete(state, names)
    going = list(await state.statuses()) if names is None else names
    if not wait:
        return
    await waiting.close_unled(state, deleted, timeout_s)
    if await state.leader() is not None:
        await waiting.reach(state, waiting.Goal(gone=going, timeout_s=timeout_s))


def _edit(app: str, change: edits.Edit, how: Waits) -> Plan:
    return _change(lambda state: desired.edit(state, app, change, secrets.token_hex(8)), how)


def _stay(blocking: bool, built: Sequence[Built]) -> list[DeploymentHandle[Any]]:  # noqa: FBT001 (as `run` has it)
    if blocking:
        threading.Event().wait()
    return [_handle_of(app.flat.spec, app.flat.spec.ingress) for app in built]


def _only(found: ServeStatus, name: str) -> ServeStatus:
    if name not in found.applications:
        raise ApplicationNotFound(
            f"Application {name!r} does not exist. There are: {sorted(found.applications) or 'none'}."
        )
    return found.model_copy(update={"applications": {name: found.applications[name]}})
