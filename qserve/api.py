"""`run`, `delete`, `shutdown`, `status` and the getters of handles: desired state goes in, handles come out."""

from __future__ import annotations

import asyncio
import atexit
import secrets
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from qserve import graph
from qserve.client import portal
from qserve.client.handle import DeploymentHandle
from qserve.context import get_replica_context, in_replica
from qserve.deployment import Application
from qserve.errors import (
    ApplicationNotFound,
    DeployFailed,
    DeploymentNotFound,
    DeployTimeout,
    QserveError,
    SettingsError,
    UsageError,
)
from qserve.local import LocalCluster
from qserve.spec import ApplicationStatus, ApplicationStatusInfo, AppSpec, ServeStatus
from qserve.store import calls, replies
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.store.state import ClusterState
from qserve.wire.keys import deployment_keys

T = TypeVar("T")
DEFAULT_APP = "default"
# How often a wait looks by itself; events wake it at once.
_LOOK_EVERY_S = 1.0
Progress = Callable[[ApplicationStatusInfo], None]
_cluster_lock = threading.Lock()
_cluster: LocalCluster | None = None


def run(
    target: Application,
    blocking: bool = False,  # noqa: FBT001, FBT002 (Ray Serve's signature)
    name: str = DEFAULT_APP,
    route_prefix: str | None = "/",
    *,
    force: bool = False,
    timeout_s: float | None = 60.0,
    on_progress: Progress | None = None,
) -> DeploymentHandle[Any]:
    """Deploy an application, wait until it runs, and return the handle of its outermost deployment.

    Without QSERVE_REDIS_URL an embedded cluster starts with the first call and ends with the process.

    blocking     stay here until Ctrl-C
    name         an application of this name is replaced; others are untouched
    force        restart the replicas even if code, arguments and options are the same
    timeout_s    over it DeployTimeout, which says what is waited for; None waits for ever
    on_progress  called with the application's status whenever it changes
    Raises TypeError for anything but an Application, SerializationError when its code cannot travel, DeployFailed (a
    RuntimeError) with the replica's traceback when a constructor fails.
    """
    if not isinstance(target, Application):
        raise TypeError(
            "`serve.run` expects an `Application` returned by `Deployment.bind()`. "
            f"It got {target!r}; did you forget .bind()?"
        )
    _refuse_while_loading()
    _check_app_name(name)
    _check_route_prefix(route_prefix)
    flat = graph.flatten(
        target,
        name=name,
        deploy_id=secrets.token_hex(8),
        now_s=time.time(),
        route_prefix=route_prefix,
        force=force,
    )
    _ensure_cluster()
    _on_portal(lambda state: _deploy(state, flat, timeout_s, on_progress))
    handle = _handle_of(flat.spec, flat.spec.ingress)
    if blocking:
        threading.Event().wait()
    return handle


def delete(name: str, *, timeout_s: float = 60.0) -> None:
    """Take an application down and wait until it is gone. An unknown name does nothing. Raises DeployTimeout."""
    if _reaches_cluster():
        _on_portal(lambda state: _delete(state, [name], timeout_s))


def shutdown(*, timeout_s: float = 60.0) -> None:
    """Take all applications of the namespace down; end the embedded cluster if this process has one."""
    if not _reaches_cluster():
        return
    is_drained = False
    try:
        _on_portal(lambda state: _delete(state, None, timeout_s))
        is_drained = True
    finally:
        _end_cluster(at_once=not is_drained)


def status(name: str | None = None) -> ServeStatus:
    """What runs: applications, deployments, replicas, calls, workers. Empty when nothing was started.

    name  only this application; ApplicationNotFound lists those there are
    """
    found = _on_portal(_status) if _reaches_cluster() else ServeStatus()
    if name is None:
        return found
    if name not in found.applications:
        raise ApplicationNotFound(
            f"Application {name!r} does not exist. There are: {sorted(found.applications) or 'none'}."
        )
    return found.model_copy(update={"applications": {name: found.applications[name]}})


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


def write_env_file() -> Path | None:
    """A file, readable by its owner only, from which a shell reaches this process's embedded cluster; None without one.

    It goes with the cluster.
    """
    return None if _cluster is None else _cluster.write_env_file()


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


def _check_app_name(name: str) -> None:
    if not isinstance(name, str) or not name or set(name) & set(".#:{}~ \n\t/"):
        raise UsageError(f"The application name {name!r} is empty, or holds one of '.#:{{}}~/' or a space.")


def _check_route_prefix(prefix: str | None) -> None:
    if prefix is None:
        return
    if not prefix.startswith("/") or (prefix != "/" and prefix.endswith("/")) or set(prefix) & set("{}"):
        raise SettingsError(
            f"route_prefix={prefix!r}: it starts with '/', does not end with one, and holds no '{{' or '}}'."
        )


def _ensure_cluster() -> None:
    """Start the embedded cluster, once, if no other is configured."""
    global _cluster  # noqa: PLW0603 (a process has one embedded cluster)
    with _cluster_lock:
        chosen = portal.settings()
        if chosen.redis_url is not None:
            return
        cluster = LocalCluster(chosen)
        cluster.start()
        _cluster = cluster
        atexit.register(_end_cluster)
        portal.use(cluster.settings)


def _end_cluster(*, at_once: bool = False) -> None:
    """End the embedded cluster, if this process has one: our connections first, then its processes."""
    global _cluster
    with _cluster_lock:
        cluster, _cluster = _cluster, None
    if cluster is not None:
        atexit.unregister(_end_cluster)
        portal.use(None)
        cluster.stop(at_once=at_once)


def _reaches_cluster() -> bool:
    return portal.settings().redis_url is not None


def _on_portal(work: Callable[[ClusterState], Coroutine[Any, Any, T]]) -> T:
    """Run work on the cluster's state in the portal's thread, and wait for it."""
    door = portal.portal()
    core = door.core
    return door.run(work(ClusterState(core.link, core.settings.namespace, core.ring)))


async def _deploy(
    state: ClusterState, flat: graph.FlatApp, timeout_s: float | None, on_progress: Progress | None
) -> None:
    app, deploy_id = flat.spec.name, flat.spec.deploy_id
    seen: list[ApplicationStatusInfo] = []

    async def runs() -> bool:
        info = (await state.statuses()).get(app)
        if info is None or info.deploy_id != deploy_id:
            return False
        if not seen or seen[-1] != info:
            seen.append(info)
            if on_progress is not None:
                on_progress(info)
        if info.status is ApplicationStatus.DEPLOY_FAILED:
            raise DeployFailed(f"Deploying application {app} failed: {info.message}")
        return info.status is ApplicationStatus.RUNNING

    await state.deploy(flat.spec, flat.code)
    if not await _until(state, runs, timeout_s):
        reason = seen[-1].message if seen else ""
        raise DeployTimeout(
            f"Application {app!r} is not running after {timeout_s:g} s. {await _obstacle(state, reason)}"
        )


async def _obstacle(state: ClusterState, reason: str) -> str:
    """What a deploy waits for, in words."""
    if await state.leader() is None:
        return "No autoscaler is running: start one with `qserve autoscaler` on a host that reaches the same Redis."
    goes_on = "It goes on: `qserve status` shows it, serve.run(..., timeout_s=...) waits longer."
    return f"{reason or 'The autoscaler has not taken it up yet.'} {goes_on}"


async def _delete(state: ClusterState, names: list[str] | None, timeout_s: float) -> None:
    going = await _known_apps(state) if names is None else set(names)
    for name in going:
        await state.delete(name)

    async def gone() -> bool:
        return not going & (await state.statuses()).keys()

    if await state.leader() is not None and not await _until(state, gone, timeout_s):
        raise DeployTimeout(
            f"Applications {sorted(going)} are not gone after {timeout_s:g} s: their replicas still drain."
        )


async def _known_apps(state: ClusterState) -> set[str]:
    return (await state.wanted()).keys() | (await state.statuses()).keys()


async def _status(state: ClusterState) -> ServeStatus:
    infos = await state.statuses()
    for name, spec in (await state.wanted()).items():
        infos.setdefault(
            name,
            ApplicationStatusInfo(status=ApplicationStatus.NOT_STARTED, last_deployed_time_s=spec.deployed_at_s),
        )
    alive, _lapsed = await state.nodes()
    counted = {name: await _with_depths(state, name, info) for name, info in infos.items()}
    return ServeStatus(applications=counted, nodes=tuple(alive.values()))


async def _with_depths(state: ClusterState, app: str, info: ApplicationStatusInfo) -> ApplicationStatusInfo:
    deployments = {}
    for name, deployment in info.deployments.items():
        depth = await calls.depth(state.link, deployment_keys(state.keys.namespace, app, name))
        deployments[name] = deployment.model_copy(update={"waiting": depth.waiting, "running": depth.running})
    return info.model_copy(update={"deployments": deployments})


async def _until(state: ClusterState, check: Callable[[], Coroutine[Any, Any, bool]], timeout_s: float | None) -> bool:
    """Wait until `check` is true, woken by the cluster's events. False when `timeout_s` passes first."""
    woken = asyncio.Event()

    async def listen(pipe: Pipe) -> None:
        await replies.subscribe(pipe, state.keys.events)

    events = Link(state.link.endpoint, "qserve-api-events", on_up=listen, on_message=lambda _event: woken.set())
    try:
        async with asyncio.timeout(timeout_s):
            await events.ready()
            while not await check():
                await _woken_or_later(woken)
    except TimeoutError:
        return False
    finally:
        await events.close()
    return True


async def _woken_or_later(woken: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_EVERY_S):
            await woken.wait()
    except TimeoutError:
        return
    woken.clear()
