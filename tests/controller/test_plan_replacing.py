"""Old for new, one by one: updates with and without room beside the old, worn replicas, nodes that come back."""

from collections import Counter
from itertools import pairwise
from typing import Any

from qserve.controller.actions import Assign, Unassign
from qserve.spec import ReplicaState
from tests.controller.world import World, spec


def deployed(world: World, replicas: int = 4, **options: Any) -> World:
    """This world, with `Echo` running in it."""
    world.deploy(spec(replicas=replicas, **options))
    world.settle()
    return world


def cpus(*amounts: float) -> World:
    """A cluster of nodes n1, n2, ... that offer so many CPUs."""
    world = World()
    for number, amount in enumerate(amounts, start=1):
        world.join(f"n{number}", resources={"num_cpus": amount})
    return world


def by_node(world: World) -> Counter[str]:
    """How many replicas each node is to have."""
    return Counter(a.node_id for a in world.assignments.values())


# Updates


def test_each_new_replica_that_runs_frees_an_old_one():
    """The old ones do not wait for the last of the new: their memory is needed. There are never too few, though."""
    world = deployed(cpus(6))
    world.deploy(spec(version="v2", replicas=4))
    seen = []
    for _ in range(20):
        world.turn()
        running = world.running()
        assert running.total() >= 4
        assert world.used("n1")["num_cpus"] <= 6
        seen.append((running["v1"], running["v2"]))
        world.work()

    assert [pair for pair, after in pairwise(seen) if pair != after] == [(4, 0), (2, 2)]
    assert world.running() == {"v2": 4}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_without_room_beside_the_old_one_old_replica_goes_first():
    """A GPU that is full holds no second model: there is a gap of one replica, no more, and it is said."""
    world = deployed(cpus(4))
    world.deploy(spec(version="v2", replicas=4))
    fewest, messages = 4, set()
    for _ in range(40):
        world.turn()
        fewest = min(fewest, world.running().total())
        messages.add(world.info().message.partition(".")[0])
        world.work()

    assert fewest == 3
    assert (
        "New replicas have no room beside the old ones, which make way one by one; calls wait in the queue" in messages
    )
    assert world.running() == {"v2": 4}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_an_old_replica_stays_while_updates_beside_it_give_room_back():
    """One free CPU, and two deployments that want it: the second one waits for the first instead of having a gap."""
    world = cpus(3)
    world.deploy(spec("First", replicas=1), spec("Second", replicas=1))
    world.settle()
    world.deploy(spec("First", version="v2", replicas=1), spec("Second", version="v2", replicas=1))
    for _ in range(40):
        world.turn()
        assert world.running("First").total() >= 1
        assert world.running("Second").total() >= 1
        world.work()

    assert (world.running("First"), world.running("Second")) == ({"v2": 1}, {"v2": 1})


def test_room_that_an_update_elsewhere_gives_back_is_waited_for_only_where_it_helps():
    """Another host's CPUs are no GPU: there is nothing to wait for, be its update as slow as it likes."""
    world = cpus(3)
    world.join("n2", resources={"num_cpus": 1.0, "num_gpus": 1.0})
    gpu: dict[str, Any] = {"ray_actor_options": {"num_gpus": 1}}
    world.deploy(spec("Plain", replicas=2), spec("Model", replicas=1, **gpu))
    world.settle()
    world.deploy(spec("Plain", version="v2", replicas=2), spec("Model", version="v2", replicas=1, **gpu))
    world.turn()

    assert world.running("Plain") == {"v1": 2}
    assert world.assigned("Model") == []


def test_a_larger_version_takes_the_place_of_as_many_as_it_needs():
    """Two old ones for one new one, on one node; those of the other serve on meanwhile."""
    world = deployed(cpus(2, 2), replicas=4)
    world.deploy(spec(version="v2", replicas=2, ray_actor_options={"num_cpus": 2}))
    fewest = 4
    for _ in range(40):
        world.turn()
        fewest = min(fewest, world.running().total())
        world.work()

    assert fewest >= 1
    assert world.running() == {"v2": 2}
    assert by_node(world) == {"n1": 1, "n2": 1}


def test_no_old_replica_goes_for_a_version_that_fits_nowhere():
    """It would be an outage for nothing: the old version serves until there is a host with a GPU."""
    world = deployed(cpus(4))
    before = dict(world.assignments)
    world.deploy(spec(version="v2", replicas=4, ray_actor_options={"num_gpus": 1}))
    world.settle()

    assert world.assignments == before
    assert world.shown() == ("DEPLOYING", "UPDATING", "CONFIG_UPDATE_STARTED")
    assert world.info().message == "No node takes another replica of it: needs num_gpus=1; 0 of 1 nodes offer a GPU."


def test_an_update_that_fails_halfway_keeps_the_old_ones_that_are_left():
    """Two new ones run, the rest does not start: what serves, of either version, serves on."""
    world = deployed(cpus(6))
    world.deploy(spec(version="v2", replicas=4))
    while world.running()["v2"] < 2:
        world.turn()
        world.work()
    world.broken.add("v2")
    for _ in range(100):
        world.turn()
        world.work()
        world.now += 5.0

    assert world.running() == {"v1": 2, "v2": 2}
    assert world.shown() == ("DEPLOY_FAILED", "DEPLOY_FAILED", "REPLICA_STARTUP_FAILED")
    assert "v2 is broken" in world.info().message


def test_fewer_of_a_new_version_need_only_as_many_old_ones():
    """Scaling down goes before replacing: what would go anyway does not wait for the new code."""
    world = deployed(cpus(8))
    world.deploy(spec(version="v2", replicas=2))
    world.turn()

    assert world.running() == {"v1": 2}


# Worn replicas


def test_a_worn_replica_is_replaced_before_it_goes():
    """A replica that leaks asks for a replacement, and serves until that one does."""
    world = deployed(cpus(8), replicas=2)
    worn, other = sorted(world.assignments)
    world.change(worn, retiring="it took 1000 calls")
    for _ in range(8):
        world.turn()
        assert world.running().total() >= 2
        assert world.shown()[:2] == ("RUNNING", "HEALTHY")
        world.work()

    assert worn not in world.replicas
    assert other in world.assignments
    assert world.running() == {"v1": 2}


def test_worn_replicas_are_replaced_one_at_a_time():
    """All began together, so all are worn together: the cluster must not host the whole deployment twice."""
    world = deployed(cpus(20), replicas=4)
    before = set(world.assignments)
    for replica_id in before:
        world.change(replica_id, retiring="it took 1000 calls")
    for _ in range(40):
        world.turn()
        assert len(world.assignments) <= 5
        world.work()

    assert not before & set(world.assignments)
    assert world.running() == {"v1": 4}
    assert world.decide() == []


def test_a_worn_replica_without_room_beside_it_goes_first():
    """Else it would leak until it takes its host along."""
    world = deployed(cpus(2), replicas=2)
    worn = min(world.assignments)
    world.change(worn, retiring="it holds 9 GB")
    fewest = 2
    for _ in range(12):
        world.turn()
        fewest = min(fewest, world.running().total())
        world.work()

    assert fewest == 1
    assert worn not in world.replicas
    assert world.running() == {"v1": 2}


def test_scaling_down_takes_a_worn_replica():
    """One that wants to go, instead of one that would have to be replaced next."""
    world = deployed(cpus(8), replicas=2)
    worn = min(world.assignments)
    world.change(worn, retiring="it took 1000 calls")
    world.deploy(spec(replicas=1))
    world.turn()

    assert worn not in world.assignments
    assert len(world.assignments) == 1


# Nodes that come back


def test_replicas_move_to_a_node_that_came_back():
    """After a host was away the other one has all; a second failure would take the deployment down."""
    world = deployed(World.of("n1"), replicas=4)
    world.join("n2")
    for _ in range(30):
        world.turn()
        assert world.running().total() >= 4
        assert len(world.assignments) <= 5
        assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")
        world.work()

    assert by_node(world) == {"n1": 2, "n2": 2}
    assert world.decide() == []


def test_a_difference_of_one_is_even():
    """Three replicas cannot be spread better over two nodes: nothing moves for ever back and forth."""
    world = deployed(World.of("n1"), replicas=1)
    world.join("n2")

    assert world.decide() == []


def test_nothing_moves_where_replicas_are_packed():
    """An empty node is what packing is for."""
    world = deployed(World.of("n1"), placement_group_strategy="PACK")
    world.join("n2")

    assert world.decide() == []


def test_nothing_moves_to_a_node_that_does_not_fit():
    """Uneven, but not to be helped."""
    world = deployed(cpus(8))
    world.join("n2", resources={"num_cpus": 0.5})
    world.join("n3", resources={"num_cpus": 8}, deployments=("Other",))

    assert world.decide() == []


def test_a_node_that_comes_back_gets_one_model_at_a_time():
    """Twenty deployments that all move at once would bring the host down again."""
    world = World.of("n1")
    world.deploy(*(spec(f"D{number}", replicas=2) for number in range(5)))
    world.settle()
    world.join("n2")
    for _ in range(60):
        world.turn()
        starting = [r for r in world.assignments if world.state(r) in (None, ReplicaState.STARTING)]
        assert len(starting) <= 1
        world.work()

    assert by_node(world) == {"n1": 5, "n2": 5}


def test_a_move_that_fails_is_not_tried_at_once_again():
    """The node that came back cannot start it: the deployment is whole all the while, and the node is left alone."""
    world = deployed(World.of("n1"), replicas=2)
    world.join("n2")
    world.turn()
    world.work()
    moved = next(a for a in world.assignments.values() if a.node_id == "n2")
    world.end(moved.replica_id, ReplicaState.FAILED, "no driver")
    actions = world.turn()

    assert moved.replica_id not in world.assignments
    assert not [action for action in actions if isinstance(action, Assign)]
    assert world.decide(now=world.now + 59) == []
    assert world.shown()[:2] == ("RUNNING", "HEALTHY")
    assert any(isinstance(action, Assign) for action in world.decide(now=world.now + 61))


def test_a_deploy_ends_a_move():
    """The extra replica of a move counts like any other when the number changes."""
    world = deployed(World.of("n1"), replicas=2)
    world.join("n2")
    world.turn()
    world.deploy(spec(replicas=1))
    actions = world.turn()

    assert sum(isinstance(action, Unassign) for action in actions) == 2
    world.settle()
    assert world.running() == {"v1": 1}
