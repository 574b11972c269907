"""Options that running replicas are told: in place, in waves, and what becomes of those that cannot take them."""

from collections import Counter
from typing import Any

from qserve.controller.actions import Assign, Reconfigure, Unassign
from qserve.spec import DeploymentSpec, ExitCause, ReplicaState
from tests.controller.world import World, spec


def configured(value: int, replicas: int = 10, **options: Any) -> DeploymentSpec:
    """`Echo` with a `user_config`, which restarts nothing."""
    return spec(replicas=replicas, user_config={"value": value}, **options)


def running(replicas: int = 10, **options: Any) -> World:
    """A cluster in which it runs with the value 1."""
    world = World.of("n1", "n2")
    world.deploy(configured(1, replicas, **options))
    world.settle()
    return world


def told(world: World) -> Counter[str]:
    """How many replicas run with which options."""
    return Counter(record.config_version for record in world.replicas.values() if record.serves)


def test_new_options_reach_the_replicas_that_run():
    """A changed threshold must not reload the model: the same replicas go on, and it is over when all have it."""
    world = running()
    before = set(world.assignments)
    new = configured(2)
    world.deploy(new)
    actions = world.turn()
    assert world.shown() == ("DEPLOYING", "UPDATING", "CONFIG_UPDATE_STARTED")
    assert not [action for action in actions if isinstance(action, Assign | Unassign)]

    world.settle()
    assert set(world.assignments) == before
    assert told(world) == {new.config_version: 10}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_they_are_told_in_waves():
    """Only so many at a time may be busy with it, and the next ones only when those have it."""
    world = running()
    world.deploy(configured(2, rolling_update_percentage=0.3))
    most, waves = 0, []
    for _ in range(30):
        waves.append(sum(isinstance(action, Reconfigure) for action in world.turn()))
        busy = sum(record.state == "UPDATING" for record in world.replicas.values())
        assert not busy or not waves[-1]
        world.work()
        most = max(most, sum(record.state == "UPDATING" for record in world.replicas.values()))

    assert [wave for wave in waves if wave] == [3, 3, 3, 1]
    assert most == 3
    assert world.shown()[0] == "RUNNING"


def test_a_single_replica_is_a_wave():
    """Twenty percent of one would be none, for ever."""
    world = running(replicas=1)
    world.deploy(configured(2, replicas=1))
    world.settle()

    assert told(world) == {configured(2).config_version: 1}


def test_a_replica_that_nobody_has_begun_to_start_is_told_at_once():
    """It starts with the new options: nothing is spared by a wave."""
    world = World.of("n1")
    world.deploy(configured(1))
    world.turn()
    world.deploy(configured(2))

    assert sum(isinstance(action, Reconfigure) for action in world.turn()) == 10


def test_replicas_that_start_with_the_old_options_are_told_in_waves_too():
    """They take the new ones over when they run; all of them at once would be a gap."""
    world = World.of("n1")
    world.deploy(configured(1))
    world.turn()
    world.work()
    world.deploy(configured(2))
    for _ in range(20):
        world.turn()
        world.work()
        assert sum(record.state == "UPDATING" for record in world.replicas.values()) <= 2

    assert told(world) == {configured(2).config_version: 10}


def test_options_and_number_may_change_together():
    """New replicas start with the new options; the others are told."""
    world = running(replicas=2)
    before = set(world.assignments)
    world.deploy(configured(2, replicas=4))
    world.settle()

    assert before < set(world.assignments)
    assert told(world) == {configured(2).config_version: 4}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_a_changed_option_of_the_controller_alone_touches_no_replica():
    """How fast to roll out is nobody else's business."""
    world = running()
    before = dict(world.assignments)
    world.deploy(configured(1, rolling_update_percentage=1.0, max_queued_requests=7))
    world.turn()

    assert world.assignments == before
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_options_that_break_replicas_stop_after_the_first_wave():
    """A typo in a threshold costs one wave; the rest serves on with what it had, and the error is shown."""
    world = running()
    old, new = configured(1), configured(2)
    world.bad.add(new.config_version)
    world.deploy(new)
    for _ in range(60):
        world.turn()
        assert told(world)[old.config_version] >= 8
        world.work()
        world.now += 1.0

    assert world.shown() == ("DEPLOY_FAILED", "DEPLOY_FAILED", "REPLICA_STARTUP_FAILED")
    assert "ValueError" in world.info().message
    assert told(world) == {old.config_version: 8}
    assert world.decide() == []


def test_mended_options_reach_all_after_a_failure():
    """The next deploy starts afresh: those that were lost come back, the others are told."""
    world = running()
    world.bad.add(configured(2).config_version)
    world.deploy(configured(2))
    world.settle()
    world.deploy(configured(3))
    world.settle()

    assert told(world) == {configured(3).config_version: 10}
    assert world.shown() == ("RUNNING", "HEALTHY", "CONFIG_UPDATE_COMPLETED")


def test_a_replica_that_gives_up_is_replaced_before_it_has_left():
    """It finishes what it runs, perhaps for long; its place is not kept for it."""
    world = running(replicas=2)
    sick, well = sorted(world.assignments)
    world.change(sick, state=ReplicaState.STOPPING, cause=ExitCause.HEALTH_CHECK, message="no answer")
    world.turn()
    world.now += 0.3
    world.turn()

    assert sick in world.replicas
    assert sick not in world.assignments
    assert well in world.assignments
    assert len(world.assignments) == 2
    assert world.shown() == ("UNHEALTHY", "UNHEALTHY", "HEALTH_CHECK_FAILED")
    world.settle()
    assert sick not in world.replicas
    assert world.shown() == ("RUNNING", "HEALTHY", "UNSPECIFIED")
