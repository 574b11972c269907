"""Changing what is wanted: all applications of a deploy in one step, against what they were when they were read."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from qserve.deploying.edits import Edit, earlier
from qserve.deploying.preview import Step, preview
from qserve.deploying.targets import Built
from qserve.errors import QserveError, RefusedError, UsageError
from qserve.graph import FlatApp, is_restart, same_code
from qserve.spec import AppSpec
from qserve.store.history import Read, Wish
from qserve.store.state import ClusterState

# Others may deploy at the same time; each attempt begins with what is there now.
_ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """A deploy that is worked out: what becomes of each application, and each line of it for people."""

    wishes: Mapping[str, Wish]
    code: Mapping[str, bytes]
    steps: tuple[Step, ...]

    @property
    def deploys(self) -> dict[str, str]:
        """The applications that are to run, with the ids of their deploys."""
        return {name: wish.spec.deploy_id for name, wish in self.wishes.items() if wish.spec is not None}

    @property
    def gone(self) -> list[str]:
        """The applications that are to go."""
        return [name for name, wish in self.wishes.items() if wish.spec is None]


async def work_out(state: ClusterState, built: Sequence[Built], *, only_these: bool = False) -> Plan:
    """What deploying these applications would do.

    only_these  all others of the namespace go, but for those that workers host by themselves
    Raises SignatureError when this process has another secret than the cluster; QserveError (RayServeException) when a
    route_prefix belongs to another application.
    """
    await state.check_seal()
    present = await state.history.read()
    names = {app.name for app in built}
    others = {name: read for name, read in present.items() if name not in names}
    leaving = {name: read for name, read in others.items() if only_these and read.spec and not read.spec.fixed}
    routes = {read.spec.route_prefix: name for name, read in others.items() if name not in leaving and read.spec}
    wishes: dict[str, Wish] = {}
    code: dict[str, bytes] = {}
    for routed in _routed(built, routes):
        before = present.get(routed.spec.name, Read())
        flat = _kept(routed, before.spec)
        wishes[flat.spec.name] = Wish(before, flat.spec, is_new=not _is_same(before.spec, flat.spec))
        code |= flat.code
    wishes |= {name: Wish(read, None) for name, read in leaving.items()}
    steps = [step for name, wish in wishes.items() for step in preview(name, wish.before.spec, wish.spec)]
    return Plan(wishes, code, tuple(steps))


async def deploy(state: ClusterState, built: Sequence[Built], *, only_these: bool = False) -> Plan:
    """Want these applications, all in one step. Returns what was done; raises what `work_out` raises."""
    for _ in range(_ATTEMPTS):
        plan = await work_out(state, built, only_these=only_these)
        if await state.want(plan.wishes, plan.code):
            return plan
    raise RefusedError("The applications change all the time: others deploy them. Try again.")


async def edit(state: ClusterState, app: str, change: Edit, deploy_id: str) -> Plan:
    """Change a deployed application, whatever others do to it meanwhile; its history stays.

    Raises ApplicationNotFound, and what the edit raises.
    """

    async def edited(old: AppSpec) -> AppSpec:
        return change(old)

    return await _change(state, app, edited, deploy_id)


async def roll_back(state: ClusterState, app: str, back: int, deploy_id: str) -> Plan:
    """Deploy the application as it was `back` versions ago.

    Raises ApplicationNotFound; UsageError when there is no such version; CallRejected when its code is lost.
    """

    async def then(_old: AppSpec) -> AppSpec:
        return earlier(app, await state.history.versions(app), back).model_copy(update={"deployed_at_s": time.time()})

    return await _change(state, app, then, deploy_id, is_deploy=True)


async def delete(state: ClusterState, names: Collection[str] | None) -> list[AppSpec]:
    """Want these applications gone, in one step; None: all. Returns those that were wanted."""
    for _ in range(_ATTEMPTS):
        present = await state.history.read()
        going = {name: read for name, read in present.items() if (read.spec if names is None else name in names)}
        if not going or await state.want({name: Wish(read, None) for name, read in going.items()}, {}):
            return [read.spec for read in going.values() if read.spec is not None]
    raise RefusedError("The applications change all the time: others deploy them. Try again.")


async def _change(
    state: ClusterState,
    app: str,
    make: Callable[[AppSpec], Awaitable[AppSpec]],
    deploy_id: str,
    *,
    is_deploy: bool = False,
) -> Plan:
    for _ in range(_ATTEMPTS):
        before = await state.history.present(app)
        old = before.spec or await state.app(app)  # which raises, and says what is there or what is wrong
        if old.fixed:
            raise UsageError(
                f"The workers host application {app!r} by themselves, each as it was started: start them again with "
                "other options, `qserve worker MODULE:APP --replicas DEPLOYMENT=N`."
            )
        new = (await make(old)).model_copy(update={"deploy_id": deploy_id})
        wish = Wish(before, new, is_new=is_deploy and not _is_same(old, new))
        plan = Plan({app: wish}, await _code_of(state, old, new), tuple(preview(app, old, new)))
        if await state.want(plan.wishes, plan.code):
            return plan
    raise RefusedError(f"Application {app!r} changes all the time: others deploy it. Try again.")


async def _code_of(state: ClusterState, old: AppSpec, new: AppSpec) -> dict[str, bytes]:
    """The code of the new versions: a restarted one's is that of the old one, an earlier one's is still there."""
    code: dict[str, bytes] = {}
    for spec in new.deployments:
        before = old.deployment(spec.name)
        if before is None or before.version != spec.version:
            is_restart = before is not None and same_code(before.version, spec.version)
            code[spec.version] = await state.code(before.version if before is not None and is_restart else spec.version)
    return code


def _routed(built: Sequence[Built], taken: Mapping[str | None, str]) -> list[FlatApp]:
    """The applications with their routes. Raises QserveError when one that was said is taken."""
    owners = dict(taken)
    flats: dict[str, FlatApp] = {}
    for app in sorted(built, key=lambda app: not app.has_route):
        prefix = app.flat.spec.route_prefix
        owner = owners.get(prefix) if prefix is not None else None
        if owner is not None and app.has_route:
            raise QserveError(
                f'Prefix {prefix} is being used by application "{owner}". Failed to deploy application "{app.name}".'
            )
        if owner is not None:
            prefix = None
        owners[prefix] = app.name
        flats[app.name] = FlatApp(app.flat.spec.model_copy(update={"route_prefix": prefix}), app.flat.code)
    return [flats[app.name] for app in built]


def _kept(flat: FlatApp, before: AppSpec | None) -> FlatApp:
    """The application with the present versions of deployments whose code is the same, though they were restarted."""
    deployments, code = [], {}
    for spec in flat.spec.deployments:
        old = None if before is None else before.deployment(spec.name)
        is_kept = old is not None and not is_restart(spec.version) and same_code(old.version, spec.version)
        version = old.version if old is not None and is_kept else spec.version
        deployments.append(spec.model_copy(update={"version": version}))
        code[version] = flat.code[spec.version]
    return FlatApp(flat.spec.model_copy(update={"deployments": tuple(deployments)}), code)


def _is_same(before: AppSpec | None, after: AppSpec) -> bool:
    """Whether a deploy changes nothing but its own date."""
    if before is None:
        return False
    own = {"deploy_id": after.deploy_id, "deployed_at_s": after.deployed_at_s, "source": after.source}
    return before.model_copy(update=own).to_json() == after.to_json()
