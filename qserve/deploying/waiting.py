"""Waiting for what was wanted, woken by the cluster's events: nothing is asked as long as nothing happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from qserve.config import LEASE_S
from qserve.errors import DeployFailed, DeployTimeout, QserveError
from qserve.spec import ApplicationStatus, ApplicationStatusInfo, AppSpec, DeploymentStatus
from qserve.store import replies
from qserve.store.fixed import close_queues
from qserve.store.link import Link
from qserve.store.logs import LogReader
from qserve.store.pipe import Pipe
from qserve.store.state import ClusterState

Progress = Callable[[str, ApplicationStatusInfo], None]
# Of a failed deployment's last lines so many are told, of those that its message does not hold already.
_TAIL_LINES = 20
_TAIL_READ = 200


@dataclass(frozen=True, slots=True)
class Goal:
    """What is waited for.

    deploys      applications that are to run, with the deploy that is meant
    gone         applications that are to be gone
    timeout_s    None waits for ever
    on_progress  called with an application's name and status whenever that changes
    """

    deploys: Mapping[str, str] = field(default_factory=dict)
    gone: Collection[str] = ()
    timeout_s: float | None = 60.0
    on_progress: Progress | None = None


async def reach(state: ClusterState, goal: Goal) -> None:
    """Wait until the goal is reached.

    Raises DeployFailed with the replica's traceback and last lines, DeployTimeout that says what is waited for.
    """
    seen: dict[str, ApplicationStatusInfo] = {}

    async def reached() -> bool:
        statuses = await state.statuses()
        for app in goal.deploys:
            info = statuses.get(app)
            if info is None or info.deploy_id != goal.deploys[app]:
                await _check_still_wanted(state, app, goal.deploys[app])
            elif seen.get(app) != info:
                seen[app] = info
                if goal.on_progress is not None:
                    goal.on_progress(app, info)
        for app, info in seen.items():
            if info.status is ApplicationStatus.DEPLOY_FAILED:
                raise DeployFailed(
                    f"Deploying application {app} failed: {info.message}{await _tails(state, app, info)}"
                )
        is_up = all(app in seen and seen[app].status is ApplicationStatus.RUNNING for app in goal.deploys)
        return is_up and not statuses.keys() & set(goal.gone)

    if not await until(state, reached, goal.timeout_s):
        raise DeployTimeout(await _late(state, goal, seen))


async def close_unled(state: ClusterState, deleted: Sequence[AppSpec], timeout_s: float | None) -> None:
    """Answer what waits for deleted applications that no leader answers for, until their replicas have left.

    Workers host them by themselves, or no leader has seen them yet. Raises DeployTimeout.
    """
    led = await state.statuses()
    left = [app for app in deleted if app.fixed or app.name not in led]

    async def closed() -> bool:
        for app in list(left):
            if await close_queues(state, app.name, app.deployments):
                left.remove(app)
        return not left

    ends_at = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    # No event tells of a worker that was killed: its lease lapses.
    while left and not await until(state, closed, min(LEASE_S, ends_at - time.monotonic())):
        if time.monotonic() >= ends_at:
            raise DeployTimeout(f"Applications {[app.name for app in left]} are not gone: their replicas still drain.")


async def until(state: ClusterState, check: Callable[[], Awaitable[bool]], timeout_s: float | None) -> bool:
    """Wait until `check` is true. It is asked at first, after each event, and when the connection has come back.

    False when `timeout_s` passes first.
    """
    woken = asyncio.Event()

    async def listen(pipe: Pipe) -> None:
        await replies.subscribe(pipe, state.keys.events)
        woken.set()  # what happened before was not heard

    events = Link(state.link.endpoint, "qserve-api-events", on_up=listen, on_message=lambda _event: woken.set())
    try:
        async with asyncio.timeout(timeout_s):
            await events.ready()
            while not await check():
                await woken.wait()
                woken.clear()
    except TimeoutError:
        return False
    finally:
        await events.close()
    return True


async def _check_still_wanted(state: ClusterState, app: str, deploy_id: str) -> None:
    """Raises DeployFailed when somebody else has changed or deleted the application meanwhile."""
    present = await state.history.present(app)
    if present.spec is None or present.spec.deploy_id != deploy_id:
        what = "deployed again" if present.raw else "deleted"
        raise DeployFailed(f"Application {app} was {what} by somebody else before it ran: `qserve status` shows it.")


async def _tails(state: ClusterState, app: str, info: ApplicationStatusInfo) -> str:
    """The last lines that a replica of each failed deployment wrote."""
    text = ""
    for name, told in info.deployments.items():
        if told.status is not DeploymentStatus.DEPLOY_FAILED:
            continue
        try:
            lines = await LogReader(state, f"{app}.{name}").last(_TAIL_READ)
        except QserveError:  # the error itself matters more
            continue
        own = [line for line in lines if not line.of_worker and line.text not in told.message]
        if own:  # several replicas failed alike: those of the last one
            tail = [line.text for line in own if line.replica_id == own[-1].replica_id][-_TAIL_LINES:]
            text += f"\nThe last lines of {own[-1].label}:\n" + "\n".join(tail)
    return text


async def _late(state: ClusterState, goal: Goal, seen: Mapping[str, ApplicationStatusInfo]) -> str:
    """What was not reached in time, and why, in words."""
    waiting = [a for a in goal.deploys if a not in seen or seen[a].status is not ApplicationStatus.RUNNING]
    after = f"after {goal.timeout_s:g} s"
    if await state.leader() is None:
        names = ", ".join(repr(app) for app in waiting or sorted(goal.gone))
        return (
            f"Application {names} is not {'running' if waiting else 'gone'} {after}. No autoscaler is running: start "
            "one with `qserve autoscaler` on a host that reaches the same Redis."
        )
    if not waiting:
        return f"Applications {sorted(goal.gone)} are not gone {after}: their replicas still drain."
    lines = []
    for app in waiting:
        reason = seen[app].message if app in seen else ""
        lines.append(f"Application {app!r} is not running {after}. {reason or 'No autoscaler has taken it up yet.'}")
    return "\n".join(lines) + " It goes on: `qserve status` shows it, a larger timeout_s (--timeout-s) waits longer."
