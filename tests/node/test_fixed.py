"""A worker that hosts by itself: what it decides, and what it writes where no leader does. Its replicas are records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from qserve import graph
from qserve.errors import DeploymentUnavailableError, SignatureError, UsageError
from qserve.node.agent import Agent
from qserve.node.fixed import Failures, FixedApp, FixedHost, Steps, steps
from qserve.spec import (
    ApplicationStatus,
    Assignment,
    DeploymentStatus,
    ExitCause,
    NodeRecord,
    ReplicaRecord,
    ReplicaState,
)
from qserve.store import calls
from qserve.store.fixed import close_queues, fixed_statuses
from qserve.store.state import Change
from qserve.wire.keys import deployment_keys
from tests.store.queue import Queue
from workers.compose import app as compose
from workers.echo import app as echo

RUNNING, STARTING, STOPPING = ReplicaState.RUNNING, ReplicaState.STARTING, ReplicaState.STOPPING
DIED, FAILED = ReplicaState.DIED, ReplicaState.FAILED


def flat(application=echo, *, deploy_id: str = "d1", force: bool = False) -> graph.FlatApp:
    """An application as a deploy makes it."""
    return graph.flatten(application, name="shop", deploy_id=deploy_id, now_s=1.0, route_prefix="/", force=force)


NODE = NodeRecord(
    node_id="n1", host="h", pid=1, python="3.11", qserve="0", protocol=1, resources={}, deployments=("shop",)
)


@pytest.fixture
async def host(settings) -> AsyncIterator[FixedHost]:
    """A worker that is to host two replicas of Echo."""
    made = host_of(settings, FixedApp.of(flat(), {"Echo": 2}))
    await made.state.link.ready()
    await made.state.announce(NODE)
    yield made
    await made.close()


def host_of(settings, app: FixedApp, node: NodeRecord = NODE) -> FixedHost:
    """A worker that trusts the leases at once: no Redis was lost in these tests."""
    host = FixedHost(settings, node, app)
    host._link._on_up = None
    return host


# What is hosted


def test_without_replicas_each_deployment_has_one():
    """The shortest command does what one expects."""
    assert set(FixedApp.of(flat(compose), {}).replicas.values()) == {1}


def test_deployments_that_are_not_named_have_none_here():
    """One pool of workers for the models, another for what composes them."""
    assert FixedApp.of(flat(), {"Echo": 3}).replicas == {"Echo": 3}


def test_a_deployment_that_is_not_there_is_refused_with_those_that_are():
    """A typo would be a worker that hosts nothing, and says nothing."""
    with pytest.raises(UsageError, match=r"\['Eco'\]; the application has the deployments \['Echo'\]"):
        FixedApp.of(flat(), {"Eco": 1})


# Deciding


def record(replica_id: str, state: ReplicaState, **more) -> ReplicaRecord:
    """A replica of Echo on this worker."""
    base = Assignment(replica_id=replica_id, node_id="n1", app="shop", deployment="Echo", version="v1")
    return ReplicaRecord(**base.model_dump(), state=state, **more)


A, B = record("a", RUNNING), record("b", RUNNING)
OLD = record("a", RUNNING, retiring="it took 5 calls")


@pytest.mark.parametrize(
    ("assigned", "records", "todo"),
    [
        ("", [], Steps(start=2)),
        ("ab", [], Steps()),  # not even started yet
        ("ab", [A, record("b", STARTING)], Steps()),
        ("ab", [A, record("b", DIED)], Steps(start=1, forget=("b",))),
        ("ab", [A, record("b", STOPPING)], Steps(start=1)),  # unhealthy: the next one need not wait for its end
        ("abc", [A, B, record("c", DIED)], Steps(forget=("c",))),
        ("abc", [A, B, record("c", STARTING)], Steps(unassign=("c",))),
        ("ab", [OLD, B], Steps(start=1)),
        ("abc", [OLD, B, record("c", STARTING)], Steps()),  # it serves until the other one does
        ("abc", [OLD, B, record("c", RUNNING)], Steps(unassign=("a",))),
        ("abc", [OLD, B, record("c", FAILED, cause=ExitCause.REFUSED)], Steps(unassign=("a",), forget=("c",))),
        ("bc", [record("a", STOPPING), B, record("c", FAILED, cause=ExitCause.REFUSED)], Steps()),
    ],
)
def test_the_replicas_here_are_brought_to_the_wanted_number(assigned, records, todo):
    """Replacements come before those that they replace go, unless there is no room for both."""
    assert steps(2, list(assigned), {r.replica_id: r for r in records}, may_start=True) == todo


def test_while_a_failure_holds_back_its_message_stays():
    """It is the only trace of why the deployment is not up."""
    assert steps(1, ["a"], {"a": record("a", FAILED)}, may_start=False) == Steps()


@pytest.mark.parametrize(("count", "over_in_s"), [(0, 0), (1, 0.2), (2, 0.2), (3, 0.4), (5, 0.8), (99, 10)])
def test_the_pause_doubles_with_each_round_of_failures(count, over_in_s):
    """Of two replicas that fail both are one round. A constructor that always fails must not eat the host."""
    assert Failures(count, 100.0).over_in_s(2, 100.0) == pytest.approx(over_in_s)


# Deploying


async def test_a_second_worker_with_the_same_code_changes_nothing(host, settings):
    """A pool scales by starting workers: none of them may disturb the others."""
    await host.deploy()
    before = await host.state.app("shop")
    other = host_of(settings, FixedApp.of(flat(deploy_id="d2"), {"Echo": 1}))
    await other.deploy()
    await other.close()

    assert (before.fixed, before.deploy_id) == (True, "d1")
    assert await host.state.app("shop") == before


async def test_a_route_that_another_application_has_stays_its_own(host):
    """The second of two workers on one Redis must not take the address of the first."""
    web = flat().spec.model_copy(update={"name": "web"})
    await host.state.deploy(web, {})
    await host.deploy()

    assert (await host.state.app("shop")).route_prefix is None
    assert (await host.state.app("web")).route_prefix == "/"


async def test_new_code_is_deployed_and_the_old_worker_keeps_its_own(host, settings):
    """They are restarted one after the other: until then each replica that is replaced is like those beside it."""
    await host.deploy()
    other = host_of(settings, FixedApp.of(flat(echo, deploy_id="d2", force=True), {"Echo": 1}))
    await other.deploy()
    await other.close()
    await host._turn()

    own = host.specs["Echo"]
    assert (await host.state.app("shop")).deployments[0].version != own.version
    agent = Agent(settings, NODE, own=host.specs)
    for assignment in (await host.state.assignments("n1")).values():
        assert assignment.version == own.version
        assert await agent._spec(assignment) == own
    assert await host.state.code(own.version)  # it is kept for them


async def test_an_application_of_autoscalers_is_not_taken_over(host):
    """Two that decide on the same replicas undo each other."""
    await host.state.deploy(flat().spec, {})
    with pytest.raises(UsageError, match="autoscalers take care of it: choose another --name"):
        await host.deploy()


async def test_an_application_that_cannot_be_trusted_is_not_replaced(host, server):
    """It may be a newer version's, or somebody else's."""
    server.hset(host.state.keys.apps, "shop", b"forged")
    with pytest.raises(SignatureError):
        await host.deploy()


# Hosting


async def test_it_assigns_replicas_to_itself_and_replaces_one_that_died(host):
    """Nobody else does."""
    await host.deploy()
    await host._turn()
    first, second = await running(host)

    await host.state.record(first.model_copy(update={"state": DIED, "started_at_s": 1.0}))
    await host._turn()
    assert set(await host.state.assignments("n1")) == {first.replica_id, second.replica_id}  # the first pause
    host._failures["Echo"] = replace(host._failures["Echo"], at_s=0.0)  # it is over
    host._due_at = 0.0
    await host._turn()

    now = await host.state.assignments("n1")
    assert first.replica_id not in now
    assert second.replica_id in now
    assert len(now) == 2
    assert first.replica_id not in (await host.state.snapshot()).replicas


async def test_a_deleted_application_ends_it_and_answers_who_waits(host, settings):
    """`qserve delete` without an autoscaler: a caller must hear that nobody will come."""
    await host.deploy()
    queue = Queue(host.state.link, host.state.ring, deployment_keys(settings.namespace, "shop", "Echo"))
    await queue.put(1)
    await host._turn()
    await host.state.delete("shop")
    await host.run()  # it ends by itself

    await host.state.withdraw("n1")
    await host.close()

    again = host_of(settings, FixedApp.of(flat(), {}))
    queue.link = again.state.link
    with pytest.raises(DeploymentUnavailableError, match="was deleted before the call ran"):
        await queue.answer(1)
    assert not await again.state.link.call(
        "EXISTS", queue.keys.calls, again.state.keys.code(host.specs["Echo"].version)
    )
    await again.close()


async def test_a_redis_that_has_lost_everything_is_not_taken_for_a_delete(host, server):
    """A Redis without persistence was restarted: the workers bring the application back, as at their own start."""
    await host.deploy()
    await host._turn()
    assert len(await host.state.assignments("n1")) == 2
    server.delete(*server.keys(f"qserve:1:{{{host.state.keys.namespace}*"))

    await host._turn()
    await host.state.announce(NODE)  # as its agent does when it finds its lease gone
    await host._turn()

    assert (await host.state.app("shop")).fixed
    assert len(await host.state.assignments("n1")) == 2


async def test_an_application_that_autoscalers_got_is_left_to_them(host):
    """Its queues are theirs by then: closing them would refuse their calls."""
    await host.deploy()
    await host._turn()
    await host.state.deploy(flat(deploy_id="d2").spec, {})
    await host.run()

    assert not host._deleted


async def test_an_application_that_it_cannot_read_is_not_taken_for_deleted(host, server):
    """A newer version's worker may have written it: the calls that wait are not to be refused."""
    await host.deploy()
    server.hset(host.state.keys.apps, "shop", b"of another version")
    await host._turn()
    assert not host._stopped


# Others


async def test_the_calls_of_a_lost_worker_are_handed_back_and_its_records_go(host, settings):
    """There is no leader who would do it: its calls would hang until their callers give up."""
    await host.deploy()
    queue = Queue(host.state.link, host.state.ring, deployment_keys(settings.namespace, "shop", "Echo"))
    await queue.put(1)
    await lost_worker(host)
    assert len(await queue.claim("lost-1")) == 1

    await host._turn()

    assert [entry.attempt for entry in await queue.claim("mine")] == [2]
    seen = await host.state.snapshot()
    assert set(seen.nodes | seen.lapsed) == {"n1"}
    assert "lost-1" not in seen.replicas
    assert "lost-1" not in seen.assignments


async def test_only_one_worker_of_an_application_clears_up(host, settings):
    """A hundred that do the same read would be felt by the server."""
    await host.deploy()
    later = NODE.model_copy(update={"node_id": "n2"})
    other = host_of(settings, FixedApp.of(flat(), {}), later)
    await other.state.announce(later)
    await lost_worker(host)
    await other._turn()
    await other.close()

    assert "n0" in (await host.state.snapshot()).lapsed


async def test_queues_stay_until_the_last_replica_has_left(host, settings):
    """A replica whose stream is removed under it takes that for a loss, and makes it again."""
    await host.deploy()
    await host._turn()
    await running(host)
    keys = deployment_keys(settings.namespace, "shop", "Echo")
    spec = await host.state.app("shop")

    assert not await close_queues(host.state, "shop", spec.deployments)
    assert await calls.depth(host.state.link, keys) == calls.Depth(waiting=0, running=0)
    assert await host.state.link.call("EXISTS", keys.calls)

    await host.state.withdraw("n1")
    await host.state.delete("shop")
    assert await close_queues(host.state, "shop", spec.deployments)
    assert not await host.state.link.call("EXISTS", keys.calls)


# The status


async def test_the_status_is_computed_from_the_replicas_that_are_there(host):
    """Nobody writes one for these applications, and `qserve status` shows all."""
    await host.deploy()
    assert await shown(host) == (ApplicationStatus.DEPLOYING, DeploymentStatus.UPDATING)
    assert "No worker hosts it" in (await info(host)).message

    await host._turn()
    first, second = await running(host)
    assert await shown(host) == (ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY)
    assert (await info(host)).replica_states == {"RUNNING": 2}

    await host.state.record(first.model_copy(update={"state": STARTING}))
    assert await shown(host) == (ApplicationStatus.DEPLOYING, DeploymentStatus.UPDATING)
    assert (await info(host)).message == "1 of 2 replicas are running."

    await host.state.record(second.model_copy(update={"state": DIED, "message": "It ran out of memory."}))
    assert await shown(host) == (ApplicationStatus.UNHEALTHY, DeploymentStatus.UNHEALTHY)
    assert (await info(host)).message == "It ran out of memory."


async def running(host: FixedHost) -> list[ReplicaRecord]:
    """Let all that is assigned run."""
    assigned = await host.state.assignments("n1")
    records = [ReplicaRecord(**a.model_dump(), state=RUNNING) for _, a in sorted(assigned.items())]
    for each in records:
        await host.state.record(each)
    return records


async def lost_worker(host: FixedHost) -> None:
    """A worker of the same application without a lease, with a replica that held calls."""
    lost = record("lost-1", RUNNING).model_copy(update={"node_id": "n0"})
    await host.state.announce(NODE.model_copy(update={"node_id": "n0"}))
    assignment = Assignment(**lost.model_dump(include=set(Assignment.model_fields)))
    await host.state.write([Change(host.state.keys.assignments("n0"), "lost-1", assignment.to_json())], "")
    await host.state.record(lost)
    await host.state.link.call("UNLINK", host.state.keys.node_lease("n0"))


async def info(host: FixedHost):
    """The deployment's status."""
    return fixed_statuses(await host.state.snapshot())["shop"].deployments["Echo"]


async def shown(host: FixedHost) -> tuple[ApplicationStatus, DeploymentStatus]:
    """The statuses of the application and of its deployment."""
    found = fixed_statuses(await host.state.snapshot())["shop"]
    return found.status, found.deployments["Echo"].status
