"""Whatever happens, in whatever order: the plan keeps its limits on the way, gets there, and then is quiet."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qserve.controller.plan import Action, Assign
from qserve.spec import DeploymentSpec, ReplicaState
from tests.controller.world import World, spec

NODES = ("n1", "n2", "n3")
BROKEN = "v3"
# Two deployments: one as it comes, one of which no two replicas may share a node.
LIMITS = {"Free": None, "Limited": 1}


@dataclass(frozen=True)
class Event:
    """Something that happens, and how far the cluster gets until the next thing does."""

    what: str
    replicas: dict[str, int]
    version: str
    node_id: str
    turns: int


EVENTS = st.builds(
    Event,
    what=st.sampled_from(["deploy"] * 5 + ["delete", "join", "lose", "drain", "die"]),
    replicas=st.fixed_dictionaries({}, optional={name: st.integers(1, 4) for name in LIMITS}),
    version=st.sampled_from(["v1", "v2", "v1", "v2", BROKEN]),
    node_id=st.sampled_from(NODES),
    turns=st.sampled_from([0, 1, 2, 5]),
)


def happen(world: World, event: Event) -> None:
    """Let the event happen, if it can."""
    if event.what == "deploy" and event.replicas:
        world.deploy(*(wanted(name, event.version, count) for name, count in event.replicas.items()))
    elif event.what == "delete":
        world.delete()
    elif event.what == "join" and event.node_id not in world.lapsed:
        world.nodes.setdefault(event.node_id, World.of(event.node_id).nodes[event.node_id])
    elif event.what == "lose" and event.node_id in world.nodes:
        world.lose(event.node_id)
    elif event.what == "drain" and event.node_id in world.nodes:
        world.drain(event.node_id)
    elif event.what == "die":
        running = [r for r, record in world.replicas.items() if record.state is ReplicaState.RUNNING]
        for replica_id in running[:1]:
            world.end(replica_id)


def wanted(name: str, version: str, count: int) -> DeploymentSpec:
    """The deployment of that name."""
    options: dict[str, Any] = {} if LIMITS[name] is None else {"max_replicas_per_node": LIMITS[name]}
    return spec(name, version, count, **options)


def checked_turn(world: World) -> list[Action]:
    """One turn, and what must hold around every one."""
    before = {name: world.running(name) for name in LIMITS}
    serving = {name: len(serving_on_staying_nodes(world, name)) for name in LIMITS}
    actions = world.turn()
    for deployment in world.apps["app"].deployments if "app" in world.apps else ():
        name = deployment.name
        staying = [a for a in world.assigned(name) if not world.nodes[a.node_id].draining]
        of_version = Counter(a.version for a in staying)
        old = sum(count for version, count in before[name].items() if version != deployment.version)
        assert of_version[deployment.version] <= deployment.replicas
        assert len(staying) <= deployment.replicas + old
        if LIMITS[name] is None:  # the plan never takes the last one that serves
            assert serving_on_staying_nodes(world, name) or not serving[name]
    assert all(not world.nodes[a.assignment.node_id].draining for a in actions if isinstance(a, Assign))
    limited = Counter(r.node_id for r in world.replicas.values() if r.deployment == "Limited")
    assert not limited or max(limited.values()) <= 1
    return actions


def serving_on_staying_nodes(world: World, name: str) -> list[str]:
    """Replicas that run where nobody has asked them to leave."""
    return [
        a.replica_id
        for a in world.assigned(name)
        if a.node_id in world.nodes
        and not world.nodes[a.node_id].draining
        and world.state(a.replica_id) is ReplicaState.RUNNING
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
        if deployment.version == BROKEN and staying:
            assert (world.info(name).status, world.running(name)[BROKEN]) == ("DEPLOY_FAILED", 0)
            continue
        here = Counter(a.version for a in world.assigned(name) if a.node_id in staying)
        room = deployment.replicas if staying else 0
        if LIMITS[name] is not None:
            room = min(room, len(staying))
        assert here[deployment.version] == room
        if room == deployment.replicas:
            assert (world.info(name).status, set(here)) == ("HEALTHY", {deployment.version})


@settings(max_examples=80, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=8), st.sets(st.sampled_from(NODES)))
def test_it_gets_there_and_rests(events: list[Event], nodes: set[str]):
    """Deploys, deletions, lost and draining nodes and deaths, mixed with turns that are cut short anywhere."""
    world = World.of(*sorted(nodes))
    world.broken.add(BROKEN)
    for event in events:
        happen(world, event)
        for _ in range(event.turns):
            checked_turn(world)
            world.work()
            world.now += 0.3
    world.settle(turn=checked_turn)

    check_rest(world)
    assert world.decide() == []
    assert world.decide(now=world.now + 3600) == []
