"""Options as users declare them and as Redis keeps them: a slip is refused, a newer version's option is passed over."""

from typing import Any

import pytest
from pydantic import ValidationError

from qserve.config import AutoscalingConfig, AutoscalingPolicy, DeploymentConfig
from qserve.spec import DeploymentSpec


@pytest.mark.parametrize("declared", [AutoscalingConfig, AutoscalingPolicy, DeploymentConfig])
def test_an_unknown_option_is_refused_where_it_is_declared(declared: type[Any]):
    """`max_replica=8` that is ignored shows only under load."""
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        declared(max_replica=8)


def test_options_that_a_newer_version_added_are_passed_over_at_every_level():
    """Old autoscalers and workers go on while the first laptop is upgraded."""
    scaling = {"max_replicas": 3, "new": 1, "policy": {"policy_function": "mine:policy", "new": 1}}
    config = DeploymentConfig.from_record(
        {"max_retries": 1, "new": {"a": 1}, "autoscaling_config": scaling, "ray_actor_options": {"num_tpus": 1}}
    )

    assert config.max_retries == 1
    assert config.autoscaling_config == AutoscalingConfig(
        max_replicas=3, policy=AutoscalingPolicy(policy_function="mine:policy")
    )


@pytest.mark.parametrize("config", [{"ray_actor_options": ["num_cpus"]}, {"num_replicas": "many"}, "text", None])
def test_what_cannot_be_read_is_one_kind_of_error(config: Any):
    """Readers of records expect ValueError: any other ends the autoscaler."""
    with pytest.raises(ValueError, match="config"):
        DeploymentSpec.model_validate(
            {"app": "a", "name": "D", "version": "v", "python": "3.11", "replicas": 1, "config": config}
        )
