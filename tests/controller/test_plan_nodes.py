"""Nodes that are lost, drain, join late, refuse replicas or fail to start them: where replicas go, and what is said."""

from collections import Counter
from itertools import pairwise

import pytest

from qserve.controller.actions import Assign, BuryNode, Forget
from qserve.spec import ExitCause, ReplicaState
from tests.controller.world import World, spec


def deployed(*nodes: str, replicas: int = 2) -> World:
    """A cluster in which `Echo` runs."""
    world = World.of(*(nodes or ("n1", "n2")))
    world.deploy(spec(replicas=replicas))
    world.settle()
    return world


def test_a_lost_nodes_replicas_are_replaced_elsewhere():
    """Its calls are handed back by the burial; nothing waits for the node to return, and nobody is blamed."""
    world = deployed("n1", "n2", replicas=4)
    lost = {r for r, a in world.assignments.items() if a.node_id == "n1"}
    world.lose("n1")
    actions = world.turn()
    (burial,) = (action for action in actions if isinstance(action, BuryNode))

    assert burial.node_id == "n1"
    assert {a.replica_id for a in burial.lost} == lost
    assert Counter(a.node_id for a in world.assigned()) == {"n2": 4}
    assert world.info().failures == 0

    world.settle()
    assert world.running() == {"v1": 4}
    assert world.shown() == ("RUNNING", "HEALTHY", "UNSPECIFIED")


def test_a_lost_node_is_buried_though_it_had_nothing_to_do():
    """Or it would be looked at for ever."""
    world = World.of("n1")
    world.lose("n1")
    world.settle()

    assert world.lapsed == {}


def test_a_draining_nodes_replicas_are_replaced_while_they_finish():
    """The worker is asked to leave, not killed: its places are filled at once, not when it is gone."""
    world = deployed("n1", "n2", replicas=2)
    world.drain("n1")
    world.turn()

    assert Counter(a.node_id for a in world.assigned()) == {"n1": 1, "n2": 2}
    world.settle()
    world.withdraw("n1")
    world.settle()
    assert Counter(a.node_id for a in world.assigned()) == {"n2": 2}
    assert world.shown()[0] == "RUNNING"


@pytest.mark.parametrize("leaves_early", [False, True])
def test_a_rolling_restart_of_hosts_is_no_illness(leaves_early: bool):  # noqa: FBT001 (a column of the table)
    """Nobody must be paged because a worker was asked to leave; also when it is gone before its replacements run."""
    world = deployed("n1", "n2", replicas=2)
    world.drain("n1")
    for replica_id, record in world.replicas.items():
        if record.node_id == "n1":  # it stops its replicas by itself
            world.change(replica_id, state=ReplicaState.STOPPING)
    if leaves_early:
        world.withdraw("n1")
    for _ in range(6):
        world.turn()
        assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")
        world.work()
    assert sum(world.running().values()) >= 2


def test_a_drain_without_another_host_is_an_illness():
    """Nothing serves any more, and nothing can: that is worth a page, and the message says what is missing."""
    world = deployed("n1", replicas=1)
    world.withdraw("n1")
    world.turn()

    assert world.shown()[:2] == ("UNHEALTHY", "UNHEALTHY")
    assert "No worker has joined" in world.info().message


def test_a_worker_that_joins_late_gets_what_waited():
    """`serve.run` before `qserve worker` is as good as after."""
    world = World()
    world.deploy(spec())
    world.settle()
    world.nodes |= World.of("n1").nodes
    world.settle()

    assert world.running() == {"v1": 2}


def test_records_of_nobodys_replicas_are_forgotten():
    """A worker that vanished with its record leaves some behind; they would be counted for ever."""
    world = deployed("n1", replicas=1)
    (replica_id,) = world.assignments
    stray = world.replicas[replica_id].model_copy(update={"replica_id": "stray", "node_id": "nowhere"})
    ended = world.replicas[replica_id].model_copy(update={"replica_id": "ended", "state": ReplicaState.DIED})
    world.replicas |= {"stray": stray, "ended": ended}

    assert sorted(action.replica_id for action in world.turn() if isinstance(action, Forget)) == ["ended", "stray"]
    assert world.replicas.keys() == {replica_id}


def test_a_refused_replica_is_placed_elsewhere():
    """A worker knows best what it has; it is no failure of the code."""
    world = World.of("n1", "n2", resources={"num_cpus": 4.0})
    world.hidden["n1"] = 4.0
    world.deploy(spec(replicas=2))
    for _ in range(4):
        world.turn()
        world.work()
    world.turn()

    assert Counter(a.node_id for a in world.assigned()) == {"n2": 2}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_a_refusal_everywhere_is_tried_again_with_pauses():
    """The reason is the worker's own; what is in the way there may go away, and nobody counts it as a failed start."""
    world = World.of("n1", resources={"num_cpus": 4.0})
    world.hidden["n1"] = 4.0
    world.deploy(spec(replicas=1))
    tried = []
    for _ in range(200):
        tried += [world.now - 1000 for action in world.turn() if isinstance(action, Assign)]
        world.work()
        world.now += 1.0
    gaps = [round(later - before) for before, later in pairwise(tried)]

    assert gaps[:6] == [2, 3, 5, 9, 17, 31]
    assert set(gaps[6:]) == {31}
    assert world.shown() == ("DEPLOYING", "UPDATING", "CONFIG_UPDATE_STARTED")
    assert (world.info().failures, "n1 refused it: no room here" in world.info().message) == (0, True)
    world.hidden.clear()
    world.settle()
    assert world.running() == {"v1": 1}


def test_a_node_on_which_a_start_failed_is_avoided():
    """A host with a broken driver fails each replica that it gets; the others do not."""
    world = World.of("n1", "n2")
    world.deploy(spec(replicas=1))
    world.turn()
    world.work()
    (failed,) = world.assignments.values()
    world.end(failed.replica_id, ReplicaState.FAILED, "no driver", ExitCause.START)
    for _ in range(5):
        world.turn()
        world.work()
        world.now += 1.0

    (replacement,) = world.assignments.values()
    assert replacement.node_id != failed.node_id


def test_a_node_that_fails_again_is_avoided_longer():
    """Each try costs the start of a model: an hour later is soon enough to see whether somebody mended the host."""
    world = World.of("n1")
    world.deploy(spec(replicas=1, max_constructor_retry_count=100))
    ends = []
    for _ in range(9):
        world.turn()
        world.work()
        for replica_id in list(world.assignments):
            world.end(replica_id, ReplicaState.FAILED, "no driver", ExitCause.START)
            world.turn()
            ends.append(world.setbacks["app", "Echo", "n1"].until_s - world.now)
        world.now += 15.0

    assert ends[:3] == [60, 120, 240]
    assert max(ends) <= 3600


def test_what_was_leaving_a_lost_node_is_cleared_away_with_it():
    """Its calls wait for somebody, and its record would be counted for ever."""
    world = deployed("n1", "n2", replicas=2)
    leaving = next(a for a in world.assignments.values() if a.node_id == "n1")
    world.deploy(spec(replicas=1))
    world.assignments.pop(leaving.replica_id)
    world.lose("n1")
    (burial,) = (action for action in world.turn() if isinstance(action, BuryNode))

    assert [lost.replica_id for lost in burial.lost] == [leaving.replica_id]
    assert leaving.replica_id not in world.replicas
