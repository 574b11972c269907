"""`.options()`: a copy that differs in what was said, and in nothing else."""

from typing import Any

import pytest

import qserve as serve
from qserve.config import DeploymentConfig


class Plain:
    pass


class Other:
    pass


FULL: dict[str, Any] = {
    "num_replicas": 3,
    "max_ongoing_requests": 7,
    "max_queued_requests": 11,
    "max_retries": 1,
    "user_config": {"step": 1},
    "ray_actor_options": {"num_cpus": 2},
    "graceful_shutdown_timeout_s": 1.5,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_replicas", 4),
        ("max_ongoing_requests", 8),
        ("max_queued_requests", 12),
        ("max_retries", 0),
        ("user_config", {"step": 2}),
        ("ray_actor_options", {"num_gpus": 1}),
        ("graceful_shutdown_timeout_s", 0.5),
        ("max_replicas_per_node", 1),
    ],
)
def test_only_what_is_said_changes(name: str, value: Any):
    """One deployment is the template of many; the original stays as it is."""
    original = serve.deployment(name="original", **FULL)(Plain)
    changed = original.options(**{name: value})

    assert changed.config == DeploymentConfig(**{**FULL, name: value})
    assert (changed.name, changed.func_or_class) == ("original", Plain)
    assert original.config == DeploymentConfig(**FULL)


def test_name_and_class_can_change():
    """The same options around another class, or the same class under another name."""
    original = serve.deployment(num_replicas=2)(Plain)

    assert original.options(name="other").name == "other"
    assert original.options(Other).func_or_class is Other
    assert original.options(name="other", func_or_class=Other).num_replicas == 2
    assert (original.name, original.func_or_class) == ("Plain", Plain)


def test_a_copy_shares_nothing_that_can_change():
    """A dict that is reused for the next deployment must not reach back into this one."""
    options: dict[str, Any] = {"user_config": {"steps": [1]}, "ray_actor_options": {"resources": {"disk": 1}}}
    original = serve.deployment(**options)(Plain)
    copy = original.options()
    options["user_config"]["steps"].append(2)
    copy.user_config["steps"].append(3)
    copy.ray_actor_options["resources"]["disk"] = 4

    assert original.user_config == {"steps": [1]}
    assert original.ray_actor_options == {"resources": {"disk": 1}}


def test_a_number_takes_the_place_of_autoscaling_and_the_reverse():
    """A template that scales can be fixed for a test, and a fixed one can be let loose."""
    scaling = serve.deployment(autoscaling_config={"min_replicas": 2, "max_replicas": 9})(Plain)
    fixed = scaling.options(num_replicas=1)
    assert (fixed.config.num_replicas, fixed.config.autoscaling_config) == (1, None)

    again = fixed.options(autoscaling_config={"min_replicas": 5, "max_replicas": 6})
    assert again.num_replicas == 5


def test_auto_stays_auto():
    """Changing something else keeps the preset and what was set above it."""
    original = serve.deployment(num_replicas="auto", autoscaling_config={"min_replicas": 2})(Plain)

    assert original.options(max_ongoing_requests=9).config.autoscaling_config == original.config.autoscaling_config


def test_both_at_once_are_refused_as_in_the_decorator():
    """The text is the one that users' tests already match."""
    with pytest.raises(ValueError, match="Manually setting num_replicas is not allowed when autoscaling_config"):
        serve.deployment(Plain).options(num_replicas=2, autoscaling_config={"max_replicas": 3})


def test_deployments_are_equal_when_all_of_them_is():
    """Class, name and options; a Deployment is no other thing."""
    one = serve.deployment(name="a", num_replicas=2)(Plain)

    assert one == serve.deployment(name="a", num_replicas=2)(Plain)
    assert hash(one) == hash(serve.deployment(name="a", num_replicas=2)(Plain))
    assert one != one.options(name="b")
    assert one != one.options(num_replicas=3)
    assert one != one.options(Other)
    assert one != "a"
