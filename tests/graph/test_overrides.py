"""What a deploy says beside the code: options by deployment, environment variables, logging."""

from __future__ import annotations

from typing import Any

import pytest

import qserve as serve
from qserve.config import AutoscalingConfig
from qserve.deployment import Application
from qserve.errors import SettingsError
from qserve.graph import Overrides, flatten, same_code
from qserve.spec import AppSpec


class Plain:
    def __init__(self, *_args: object) -> None:
        return


Model = serve.deployment(name="Model", num_replicas=2, max_ongoing_requests=7)(Plain)
Front = serve.deployment(name="Front")(Plain)
APP = Front.bind(Model.bind())


def spec(root: Application = APP, *, force: bool = False, deploy_id: str = "d1", **overrides: Any) -> AppSpec:
    """The application, with these overrides."""
    said = Overrides(**overrides)
    flat = flatten(root, name="app", deploy_id=deploy_id, now_s=0.0, route_prefix="/", force=force, overrides=said)
    assert flat.code.keys() == {deployment.version for deployment in flat.spec.deployments}
    return flat.spec


def test_an_override_goes_before_the_code_and_changes_nothing_else():
    """Operators tune without touching the model's code; what they do not name stays the author's."""
    model, front = spec(options={"Model": {"max_ongoing_requests": 3}}).deployments

    assert (model.config.max_ongoing_requests, model.config.num_replicas, model.replicas) == (3, 2, 2)
    assert front == spec().deployments[1]


def test_without_the_override_the_code_is_what_counts_again():
    """A line that is taken out of the file leaves no trace."""
    spec(options={"Model": {"num_replicas": 5}})

    assert spec().deployments[0].replicas == 2


def test_an_override_of_an_unknown_deployment_is_answered_with_those_there_are():
    """The text is Ray Serve's."""
    with pytest.raises(SettingsError, match=r"Deployment 'Modl' does not exist. Available: \['Model', 'Front'\]"):
        spec(options={"Modl": {"num_replicas": 5}})


@pytest.mark.parametrize(
    ("code", "override", "expected"),
    [
        ({}, {"autoscaling_config": {"max_replicas": 4}}, AutoscalingConfig(max_replicas=4)),
        (
            {"autoscaling_config": {"max_replicas": 4, "upscale_delay_s": 1}},
            {"autoscaling_config": {"max_replicas": 8}},
            AutoscalingConfig(max_replicas=8),
        ),
        (
            {},
            {"num_replicas": "auto"},
            AutoscalingConfig(min_replicas=1, max_replicas=100, target_ongoing_requests=2),
        ),
        (
            {},
            {"num_replicas": "auto", "autoscaling_config": {"max_replicas": 8}},
            AutoscalingConfig(min_replicas=1, max_replicas=8, target_ongoing_requests=2),
        ),
        (
            {"autoscaling_config": {"max_replicas": 4, "upscale_delay_s": 1}},
            {"num_replicas": "auto"},
            AutoscalingConfig(min_replicas=1, max_replicas=4, target_ongoing_requests=2, upscale_delay_s=1),
        ),
        ({"autoscaling_config": {"max_replicas": 4}}, {"num_replicas": 3}, None),
    ],
    ids=repr,
)
def test_scaling_is_merged_as_ray_serve_merges_it(code, override, expected):
    """The preset of "auto" is below what is said; else the whole of autoscaling_config is the file's."""
    (only,) = spec(serve.deployment(name="D", **code)(Plain).bind(), options={"D": override}).deployments

    assert only.config.autoscaling_config == expected


def test_a_wrong_override_names_its_deployment():
    """Of twenty in the file."""
    with pytest.raises(SettingsError, match=r"The options of app\.Model are not valid: (?s:.*)max_ongoing_requests"):
        spec(options={"Model": {"max_ongoing_requests": 0}})


def test_environment_variables_are_those_of_all_deployments_and_part_of_the_version():
    """A process reads them when it starts: another value is another process."""
    plain, one, two = (spec(env_vars=env).deployments for env in ({}, {"A": "1"}, {"A": "2"}))

    assert [deployment.env_vars for deployment in one] == [{"A": "1"}, {"A": "1"}]
    assert len({plain[0].version, one[0].version, two[0].version}) == 3
    assert spec().deployments[0].version == plain[0].version


def test_logging_is_for_those_that_say_nothing_of_it():
    """The file's or serve.run's is a default, not an order."""
    loud = Model.options(logging_config={"log_level": "DEBUG"})
    model, front = spec(Front.bind(loud.bind()), logging_config={"log_level": "ERROR"}).deployments

    assert model.config.logging_config == {"log_level": "DEBUG"}
    assert front.config.logging_config == {"log_level": "ERROR"}


def test_a_forced_version_is_told_from_new_code():
    """A plan says "restart, the code is the same", and the next deploy of that code keeps its replicas."""
    first, second = (spec(force=True, deploy_id=deploy).deployments[0].version for deploy in ("first", "second"))
    plain = spec().deployments[0].version

    assert len({first, second, plain}) == 3
    assert same_code(first, second)
    assert same_code(first, plain)
    assert not same_code(plain, spec(env_vars={"A": "1"}).deployments[0].version)
