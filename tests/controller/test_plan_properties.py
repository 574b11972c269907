"""Whatever happens, in whatever order: the plan keeps the limits, gets to what is wanted, and rests there."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qserve.controller.actions import Action, Assign
from qserve.spec import DeploymentSpec, DeploymentStatus, ReplicaState
from tests.controller.world import World, spec

NODES = ("n1", "n2", "n3")
OFFERED = {"num_cpus": 1000.0, "slot": 2.0}
BROKEN, BAD = "v3", 3
# One deployment as it comes, one of which no two replicas may share a node, one that fills the nodes it is on.
OPTIONS: dict[str, dict[str, Any]] = {
    "Free": {},
    "Limited": {"max_replicas_per_node": 1},
    "Tight": {"ray_actor_options": {"num_cpus": 0, "resources": {"slot": 1}}},
}
ROOM = {"Free": 1000, "Limited": 1, "Tight": 2}


@dataclass(frozen=True)
class Event:
    """Something that happens, and how far the cluster gets until the next thing does."""

    what: str
    replicas: dict[str, int]
    version: str
    value: int
    node_id: str
    turns: int


EVENTS = st.builds(
    Event,
    what=st.sampled_from(
        ["deploy"] * 6 + ["delete", "join", "join", "lose", "drain", "die", "wear", "wear", "fill", "scale", "sicken"]
    ),
    replicas=st.fixed_dictionaries({}, optional={name: st.integers(1, 5) for name in OPTIONS}),
    version=st.sampled_from(["v1", "v2", "v1", "v2", BROKEN]),
    value=st.sampled_from([1, 1, 2, 2, BAD]),
    node_id=st.sampled_from(NODES),
    turns=st.sampled_from([0, 1, 2, 5, 12]),
)


def happen(world: World, event: Event) -> None:
    """Let the event happen, if it can."""
    if event.what in ("join", "lose", "drain", "fill"):
        befall_node(world, event.what, event.node_id)
    elif event.what in ("die", "sicken", "wear"):
        befall_replica(world, event.what)
    elif event.what == "deploy" and event.replicas:
        world.targets.clear()
        world.deploy(*(wanted(name, event, count) for name, count in event.replicas.items()))
    elif event.what == "delete":
        world.delete()
    elif event.what == "scale":
        world.targets |= {("app", name): count - 1 for name, count in event.replicas.items()}


def befall_node(world: World, what: str, node_id: str) -> None:
    """Let something happen to a node. When it is full, it refuses what seems to fit."""
    is_there = node_id in world.nodes
    if what == "join" and not is_there and node_id not in world.lapsed:
        world.join(node_id, resources=OFFERED)
    elif what == "lose" and is_there:
        world.lose(node_id)
    elif what == "drain" and is_there:
        world.drain(node_id)
    elif what == "fill":
        world.hidden[node_id] = 999.0


def befall_replica(world: World, what: str) -> None:
    """Let something happen to one of the replicas that run, if there is any."""
    running = sorted(r for r, record in world.replicas.items() if record.state is ReplicaState.RUNNING)
    for replica_id in running[:1]:
        if what == "die":
            world.end(replica_id)
        elif what == "sicken":
            world.sicken(replica_id)
        else:
            world.change(replica_id, retiring="it took enough calls")


def wanted(name: str, event: Event, count: int) -> DeploymentSpec:
    """The deployment of that name."""
    return spec(name, event.version, count, user_config=event.value, **OPTIONS[name])


def target(world: World, deployment: DeploymentSpec) -> int:
    """How many replicas of it are wanted."""
    return world.targets.get(("app", deployment.name), deployment.replicas)


def checked_turn(world: World) -> list[Action]:
    """One turn, and what must hold around every one."""
    deployments = world.apps["app"].deployments if "app" in world.apps else ()
    before = {d.name: world.running(d.name) for d in deployments}
    serving = len(serving_on_staying_nodes(world, "Free"))
    actions = world.turn()
    for deployment in deployments:
        name, number = deployment.name, target(world, deployment)
        staying = [a for a in world.assigned(name) if not world.nodes[a.node_id].draining]
        of_version = Counter(a.version for a in staying)
        old = sum(count for version, count in before[name].items() if version != deployment.version)
        # One more may be there to replace another.
        assert of_version[deployment.version] <= number + 1
        assert len(staying) <= number + old + 1
        if name == "Free" and number:  # it has room beside itself everywhere: it never loses the last one that serves
            assert serving_on_staying_nodes(world, name) or not serving
        busy = sum(world.state(a.replica_id) is ReplicaState.UPDATING for a in staying)
        assert busy <= max(1, int(0.2 * 5))
    assert all(not world.nodes[a.assignment.node_id].draining for a in actions if isinstance(a, Assign))
    check_room(world)
    return actions


def check_room(world: World) -> None:
    """No node has more than it offers, what is still leaving counted; no two of a kind that may not share one."""
    there = {r: record for r, record in world.replicas.items() if record.state not in ("FAILED", "DIED")}
    for node_id, record in world.nodes.items():
        booked: Counter[str] = Counter()
        for replica in (there | world.assignments).values():
            if replica.node_id == node_id:
                booked.update(replica.resources)
        assert all(booked[name] <= amount for name, amount in record.resources.items())
    limited = Counter(r.node_id for r in there.values() if r.deployment == "Limited")
    assert not limited or max(limited.values()) <= 1


def serving_on_staying_nodes(world: World, name: str) -> list[str]:
    """Replicas that serve where nobody has asked them to leave."""
    return [
        a.replica_id
        for a in world.assigned(name)
        if a.node_id in world.nodes
        and not world.nodes[a.node_id].draining
        and world.state(a.replica_id) in (ReplicaState.RUNNING, ReplicaState.UPDATING)
    ]


def check_rest(world: World) -> None:
    """What must be there when nothing happens any more."""
    app = world.apps.get("app")
    staying = {node_id for node_id, record in world.nodes.items() if not record.draining}
    deployments = {} if app is None else {deployment.name: deployment for deployment in app.deployments}
    assert world.statuses.keys() == world.apps.keys()
    assert world.lapsed == {}
    assert {a.deployment for a in world.assignments.values()} <= deployments.keys()
    assert world.replicas.keys() == world.assignments.keys()
    for name, deployment in deployments.items():
        check_deployment(world, deployment, staying, ROOM[name] * len(staying))


def check_deployment(world: World, deployment: DeploymentSpec, staying: set[str], room: int) -> None:
    """It is as it is wanted, or it has failed as it must."""
    name, number, info = deployment.name, target(world, deployment), world.info(deployment.name)
    here = [a for a in world.assigned(name) if a.node_id in staying]
    of_version = Counter(a.version for a in here)
    if number and staying and (deployment.version == BROKEN or deployment.config.user_config == BAD):
        assert info.status == "DEPLOY_FAILED"
        assert not of_version[BROKEN]
        assert not [a for a in here if world.replicas[a.replica_id].config_version in world.bad]
        return
    assert of_version[deployment.version] == min(number, room)
    if number > room:
        return
    assert (info.status, set(of_version)) == (DeploymentStatus.HEALTHY, {deployment.version} if number else set())
    assert {world.replicas[a.replica_id].config_version for a in here} <= {deployment.config_version}
    assert not [a for a in here if world.replicas[a.replica_id].retiring]
    counts = [sum(a.node_id == node_id for a in here) for node_id in staying]
    assert name != "Free" or max(counts, default=0) - min(counts, default=0) <= 1


def bad_configs() -> set[str]:
    """The config_versions that no replica can take over."""
    return {spec(name, user_config=BAD, **options).config_version for name, options in OPTIONS.items()}


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=10), st.sets(st.sampled_from(NODES)))
def test_it_gets_there_and_rests(events: list[Event], nodes: set[str]):
    """Deploys, options, targets, refusals, lost, full and draining nodes, deaths, wear; turns cut short anywhere."""
    world = World.of(*sorted(nodes), resources=OFFERED)
    world.broken.add(BROKEN)
    world.bad = bad_configs()
    for event in events:
        happen(world, event)
        for _ in range(event.turns):
            checked_turn(world)
            world.work()
            world.now += 0.3
    world.hidden.clear()
    world.settle(turns=300, turn=checked_turn)
    world.setbacks.clear()  # an hour has passed
    world.settle(turn=checked_turn)

    check_rest(world)
    assert world.decide() == []
    assert world.decide(now=world.now + 3600) == []
