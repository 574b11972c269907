"""What a deploy would change is told before it does, deployment by deployment, and why."""

from __future__ import annotations

from typing import Any

import pytest

from qserve.deploying.preview import Step, Verb, differences, preview
from tests.deploying.specs import application, deployment

BEFORE: dict[str, Any] = {"num_replicas": 2, "user_config": {"size": 1, "name": "a"}, "max_ongoing_requests": 5}


def step(before: dict[str, Any], after: dict[str, Any]) -> tuple[Verb, str]:
    """The one step between two deployments of these options."""
    (only,) = preview("shop", application(deployment(**before)), application(deployment(**after)))
    return only.verb, only.why


def test_what_was_not_there_is_created():
    """A first deploy, or one more deployment of an application."""
    new = application(deployment(num_replicas=2), deployment("Front"))
    steps = [Step("shop.Model", Verb.CREATE, "2 replicas"), Step("shop.Front", Verb.CREATE, "1 replica")]

    assert preview("shop", None, new) == steps
    assert preview("shop", application(deployment("Front")), new)[0] == steps[0]


def test_what_is_left_out_is_deleted():
    """The most dangerous line of a plan: it says which of the two it is."""
    both = application(deployment(), deployment("Front"))

    assert preview("shop", both, application(deployment()))[1] == Step(
        "shop.Front", Verb.DELETE, "not in the application any more"
    )
    assert preview("shop", both, None) == [
        Step("shop.Front", Verb.DELETE, "its application goes"),
        Step("shop.Model", Verb.DELETE, "its application goes"),
    ]


def test_taking_over_what_workers_host_by_themselves_is_said():
    """Those workers end, though nothing of the code differs: it must not pass for no change."""
    steps = preview("shop", application(deployment(), fixed=True), application(deployment()))

    assert steps[1] == Step("shop", Verb.RESTART, "autoscalers take it over; workers that hosted it by themselves end")
    assert len(preview("shop", application(deployment(), fixed=True), application(deployment(), fixed=True))) == 1


@pytest.mark.parametrize(
    ("after", "verb", "why"),
    [
        ({}, Verb.KEEP, ""),
        ({"num_replicas": 3}, Verb.SCALE, "2 -> 3 replicas"),
        ({"num_replicas": 1}, Verb.SCALE, "2 -> 1 replica"),
        ({"user_config": {"size": 2, "name": "a"}}, Verb.UPDATE, "user_config.size 1 -> 2"),
        ({"user_config": None}, Verb.UPDATE, "user_config {'size': 1, 'name': 'a'} -> None"),
        ({"max_ongoing_requests": 9}, Verb.UPDATE, "max_ongoing_requests 5 -> 9"),
        ({"max_queued_requests": 9, "num_replicas": 3}, Verb.UPDATE, "max_queued_requests -1 -> 9, 2 -> 3 replicas"),
        ({"paused": True}, Verb.UPDATE, "paused"),
        ({"version": "bb"}, Verb.RESTART, "its code or its arguments"),
        ({"version": "aa-1"}, Verb.RESTART, "restarted, the code is the same"),
        ({"version": "bb", "env_vars": {"TOKEN": "secret"}}, Verb.RESTART, "env_vars TOKEN"),
        (
            {"version": "bb", "ray_actor_options": {"num_cpus": 1, "num_gpus": 2}},
            Verb.RESTART,
            "ray_actor_options.num_gpus None -> 2",
        ),
        (
            {"version": "bb", "max_ongoing_requests": 9, "num_replicas": 3},
            Verb.RESTART,
            "its code or its arguments, max_ongoing_requests 5 -> 9, 2 -> 3 replicas",
        ),
    ],
    ids=repr,
)
def test_the_strongest_change_is_the_verb_and_all_of_them_are_the_reason(after, verb, why):
    """Whoever deploys at noon wants to know whether replicas restart; whoever reviews wants to know why."""
    assert step(BEFORE, {**BEFORE, **after}) == (verb, why)


def test_an_autoscaled_deployment_is_not_scaled_by_a_deploy():
    """The number that it begins with says nothing of how many it has now."""
    before = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 4}}
    after = {"autoscaling_config": {"min_replicas": 2, "max_replicas": 4}}

    assert step(before, after) == (Verb.UPDATE, "autoscaling_config.min_replicas 1 -> 2")


def test_values_of_environment_variables_are_not_told():
    """They may be passwords, and plans end in logs."""
    _verb, why = step({"env_vars": {"A": "old", "B": "1"}}, {"version": "bb", "env_vars": {"A": "new", "C": "1"}})

    assert why == "env_vars A, B, C"


def test_a_route_is_the_applications():
    """No replica restarts for it."""
    before, after = application(deployment(), route_prefix="/a"), application(deployment(), route_prefix="/b")

    assert preview("shop", before, after)[-1] == Step("shop", Verb.UPDATE, "route_prefix '/a' -> '/b'")


def test_differences_are_one_line():
    """For the list of versions that a rollback can go to."""
    now = application(deployment(), deployment("Front"))
    then = application(deployment(version="bb"), deployment("Old"))

    assert differences(now, now) == "nothing"
    assert differences(now, then) == (
        "Model: its code or its arguments; Old: 1 replica; Front: not in the application any more"
    )
