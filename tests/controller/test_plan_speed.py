"""How long a turn's decision takes in a large cluster: the leader decides while others wait."""

import time
from statistics import median

from qserve.controller.actions import SetStatus
from tests.controller.world import World, node, spec


def large() -> World:
    """200 deployments with 500 replicas on 50 nodes; all of them run."""
    world = World()
    for number in range(50):
        world.nodes[f"n{number}"] = node(f"n{number}", resources={"num_cpus": 64.0})
    for app in range(40):
        numbers = (2, 2, 2, 3, 3) if app % 2 else (2, 3, 2, 3, 3)
        world.deploy(*(spec(f"D{i}", replicas=replicas, app=f"app{app}") for i, replicas in enumerate(numbers)))
    world.settle()
    return world


def seconds(world: World) -> float:
    """How much processor time a decision takes."""
    began = time.process_time()
    world.decide()
    return time.process_time() - began


def test_a_decision_on_500_replicas_takes_less_than_40_ms():
    """Whether or not there is anything to do."""
    world = large()
    assert len(world.assignments) == 500
    assert world.decide() == []
    quiet = [seconds(world) for _ in range(5)]
    for replica_id in list(world.assignments)[:20]:
        world.end(replica_id)
    busy = [seconds(world) for _ in range(5)]

    assert sum(isinstance(action, SetStatus) for action in world.decide()) >= 2
    assert median(quiet) < 0.04
    assert median(busy) < 0.04
