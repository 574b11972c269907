"""`@serve.deployment`: on a class or a function, bare or with options, checked where it is written."""

import functools
import re
from typing import Any

import pytest

import qserve as serve
from qserve.config import AutoscalingConfig
from qserve.deployment import Application, Deployment
from qserve.schema import LoggingConfig

NOT_CALLABLE = re.escape("@serve.deployment must be called on a class or function.")


class Plain:
    pass


def function(x: int) -> int:
    """A deployment without state."""
    return x


def test_a_class_becomes_a_deployment():
    """Bare, with an empty call and with options alike; the class itself stays what it was."""

    @serve.deployment
    class Bare:
        pass

    @serve.deployment()
    class Called:
        pass

    @serve.deployment(name="other", num_replicas=2, max_ongoing_requests=7)
    class Named:
        pass

    made: list[Any] = [Bare, Called, Named]
    assert [type(d) for d in made] == [Deployment] * 3
    assert [(d.name, d.num_replicas) for d in made] == [("Bare", 1), ("Called", 1), ("other", 2)]
    assert isinstance(made[0].func_or_class, type)


def test_a_function_becomes_a_deployment():
    """A deployment without state needs no class around it."""
    made = serve.deployment(function)

    assert (made.name, made.func_or_class) == ("function", function)


def test_the_defaults_are_ray_serves():
    """A ported application relies on what it does not say."""
    made = serve.deployment(Plain)

    assert made.num_replicas == 1
    assert made.max_ongoing_requests == 5
    assert made.max_queued_requests == -1
    assert made.user_config is None
    assert made.ray_actor_options == {"num_cpus": 1}
    assert made.config.graceful_shutdown_timeout_s == 20.0
    assert made.config.health_check_period_s == 10.0
    assert made.config.max_constructor_retry_count == 20


def test_none_means_the_default():
    """Wrappers pass their own optional arguments through."""
    assert serve.deployment(num_replicas=None, user_config=None, ray_actor_options=None)(Plain) == serve.deployment(
        Plain
    )


@pytest.mark.parametrize("target", [1, "Plain", [Plain], serve.deployment(Plain)], ids=repr)
def test_only_classes_and_functions_are_deployed(target: Any):
    """The text is the one that users' tests already match."""
    with pytest.raises(TypeError, match=NOT_CALLABLE):
        serve.deployment(target)
    with pytest.raises(TypeError, match=NOT_CALLABLE):
        serve.deployment()(target)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"name": 5}, TypeError, "A deployment's name is a str, not 5"),
        ({"name": "a#b"}, ValueError, "The deployment name 'a#b' is empty or holds one of"),
        ({"name": "a:b"}, ValueError, "The deployment name 'a:b'"),
        ({"name": ""}, ValueError, "The deployment name ''"),
        ({"version": "1"}, ValueError, "`version` was removed"),
        ({"num_replicas": 0}, ValueError, "num_replicas is expected to larger than 0"),
        ({"num_replicas": -1}, ValueError, "num_replicas is expected to larger than 0"),
        ({"num_replicas": "many"}, ValueError, "num_replicas"),
        ({"num_replicas": 1.5}, ValueError, "num_replicas"),
        (
            {"num_replicas": 2, "autoscaling_config": {"max_replicas": 3}},
            ValueError,
            "Manually setting num_replicas is not allowed when autoscaling_config is provided.",
        ),
        ({"autoscaling_config": {"min_replicas": 3, "max_replicas": 2}}, ValueError, "max_replicas=2 is below min_rep"),
        ({"autoscaling_config": {"initial_replicas": 2}}, ValueError, r"initial_replicas=2 is outside 1\.\.1"),
        ({"autoscaling_config": {"max_replica": 2}}, ValueError, "max_replica"),
        ({"autoscaling_config": {"target_ongoing_requests": 0}}, ValueError, "target_ongoing_requests"),
        ({"max_ongoing_requests": 0}, ValueError, "max_ongoing_requests"),
        ({"max_ongoing_requests": None}, ValueError, "max_ongoing_requests"),
        ({"max_queued_requests": 0}, ValueError, "max_queued_requests is -1"),
        ({"max_queued_requests": -2}, ValueError, "max_queued_requests is -1"),
        ({"max_retries": -1}, ValueError, "max_retries"),
        ({"user_config": {"kinds": {1, 2}}}, ValueError, "user_config is not JSON-serializable"),
        ({"user_config": object()}, ValueError, "user_config is not JSON-serializable"),
        ({"health_check_period_s": 0}, ValueError, "health_check_period_s"),
        ({"health_check_timeout_s": -1}, ValueError, "health_check_timeout_s"),
        ({"graceful_shutdown_wait_loop_s": -1}, ValueError, "graceful_shutdown_wait_loop_s"),
        ({"graceful_shutdown_timeout_s": -1}, ValueError, "graceful_shutdown_timeout_s"),
        ({"ray_actor_options": ["num_cpus"]}, TypeError, r"ray_actor_options is a dict, not \['num_cpus'\]"),
        ({"ray_actor_options": {"num_cpu": 1}}, ValueError, r"ray_actor_options has unknown keys \['num_cpu'\]"),
        ({"max_replicas_per_node": 0}, ValueError, "max_replicas_per_node"),
        ({"max_replicas_per_node": 101}, ValueError, "max_replicas_per_node"),
        (
            {"max_replicas_per_node": 1, "placement_group_bundles": [{"CPU": 1}]},
            ValueError,
            "max_replicas_per_node cannot be set beside placement groups",
        ),
        ({"max_constructor_retry_count": 0}, ValueError, "max_constructor_retry_count"),
        ({"rolling_update_percentage": 0}, ValueError, "rolling_update_percentage"),
        ({"max_surge_percent": 101}, ValueError, "max_surge_percent"),
        ({"num_replica": 1}, TypeError, r"A deployment has no options \['num_replica'\]; it has .*'num_replicas'"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_refused_at_once(options: dict[str, Any], error: type[Exception], text: str):
    """When the module is imported, not when the replicas start an hour later; by the decorator and by .options()."""
    with pytest.raises(error, match=text):
        serve.deployment(**options)(Plain)
    if options.get("name") != "" and options.get("max_ongoing_requests", 1) is not None:
        with pytest.raises(error, match=text):
            serve.deployment(Plain).options(**options)


def test_options_that_have_no_meaning_here_are_accepted():
    """The decorators of a ported application stand as they are."""
    made = serve.deployment(
        request_router_config={"initial_backoff_s": 1},
        backpressure_config={"status_code": 429},
        logging_config={"log_level": "DEBUG"},
        rolling_update_percentage=0.5,
        max_surge_percent=20,
        placement_group_strategy="SPREAD",
    )(Plain)

    assert isinstance(made, Deployment)


def test_auto_is_a_preset_of_the_autoscaler():
    """One replica at first, up to a hundred, two calls each; what the user sets wins."""
    preset = serve.deployment(num_replicas="auto")(Plain)
    assert preset.config.autoscaling_config == AutoscalingConfig(
        min_replicas=1, max_replicas=100, target_ongoing_requests=2
    )
    assert (preset.num_replicas, preset.max_ongoing_requests) == (1, 5)

    for given in ({"min_replicas": 3}, AutoscalingConfig.model_construct({"min_replicas"}, min_replicas=3)):
        scaling = serve.deployment(num_replicas="auto", autoscaling_config=given)(Plain).config.autoscaling_config
        assert scaling is not None
        assert (scaling.min_replicas, scaling.max_replicas) == (3, 100)


def test_an_autoscaled_deployment_starts_with_its_initial_replicas():
    """Or with the fewest, when it does not say."""
    initial = {"min_replicas": 0, "initial_replicas": 2, "max_replicas": 4}

    assert serve.deployment(autoscaling_config=initial)(Plain).num_replicas == 2
    assert serve.deployment(autoscaling_config={"min_replicas": 3, "max_replicas": 4})(Plain).num_replicas == 3


def test_a_deployment_is_not_called():
    """The error says what to do instead: ported code that forgot `.bind()` runs into this first."""
    with pytest.raises(RuntimeError, match=re.escape("Use `serve.run(Plain.bind(...))`")):
        serve.deployment(Plain)(1)


def test_a_deployment_is_made_by_the_decorator_only():
    """Its constructor would bypass every check."""
    with pytest.raises(RuntimeError, match=r"use the @serve\.deployment decorator"):
        Deployment(Plain, "name")


def test_a_callable_without_a_name_must_be_given_one():
    """Its name is the name of its queue."""
    partial = functools.partial(function, 1)
    with pytest.raises(ValueError, match="The deployment name '' is empty"):
        serve.deployment(partial)

    assert serve.deployment(name="one")(partial).name == "one"


def test_bind_records_the_arguments():
    """Nothing runs before a replica constructs the class."""

    class Explosive:
        def __init__(self, *_args: object, **_kwargs: object) -> None:
            raise AssertionError("constructed in the caller's process")

    made = serve.deployment(Explosive)
    app = made.bind(1, two=2)

    assert isinstance(app, Application)
    assert (app.init_args, app.init_kwargs) == ((1,), {"two": 2})
    assert (app.deployment.init_args, app.deployment.init_kwargs) == ((1,), {"two": 2})
    assert (made.init_args, made.init_kwargs) == ((), {})


def test_bound_deployments_are_equal_when_their_arguments_are():
    """A test of an application's builder compares what it built."""
    made = serve.deployment(Plain)

    assert made.bind(1).deployment == made.bind(1).deployment
    assert made.bind(1).deployment != made.bind(2).deployment
    assert made.bind().deployment == made
    assert made.bind(1).deployment.options(num_replicas=2).init_args == (1,)


@pytest.mark.parametrize("given", [{"log_level": "DEBUG"}, LoggingConfig(log_level="DEBUG")], ids=["dict", "model"])
def test_logging_is_set_by_the_decorator_or_afterwards(given: Any):
    """Ray Serve takes a dict or its model, and so do we; what was not said is left out."""
    said = serve.deployment(logging_config=given)(Plain)
    made = serve.deployment(Plain)
    assert made.logging_config is None
    made.set_logging_config(given)

    assert said.logging_config == made.logging_config == {"log_level": "DEBUG"}
    assert said == made


def test_a_function_takes_no_arguments_at_bind():
    """It has no constructor: they would be lost without a word."""
    made = serve.deployment(function)
    for arguments, keywords in (((1,), {}), ((), {"x": 1})):
        with pytest.raises(ValueError, match="'function' is a function deployment"):
            made.bind(*arguments, **keywords)

    assert made.bind().deployment is made
