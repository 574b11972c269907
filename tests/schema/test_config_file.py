"""Ray Serve's config file: what is right is read as Ray Serve reads it, what is wrong is found at a glance."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from qserve.config import DeploymentConfig
from qserve.errors import SettingsError
from qserve.options import AutoscalingConfig
from qserve.schema import (
    EncodingType,
    LoggingConfig,
    ProxyLocation,
    ServeApplicationSchema,
    ServeDeploySchema,
    as_config,
    read,
)
from qserve.spec import AppSpec, DeploymentSpec

FILE = """
proxy_location: EveryNode
http_options: {host: 0.0.0.0, port: 8000, request_timeout_s: 5}
grpc_options: {port: 9000, grpc_servicer_functions: []}
logging_config: {log_level: debug, encoding: json}
applications:
- name: shop
  route_prefix: /shop
  import_path: shop.app:build
  args: {size: large, layers: 3}
  runtime_env:
    env_vars: {TOWN: Ulm}
  deployments:
  - name: Model
    num_replicas: auto
    autoscaling_config: {max_replicas: 8}
    user_config: {threshold: 0.5}
    max_queued_requests: null
    ray_actor_options: {num_gpus: 1}
- name: other
  route_prefix: null
  import_path: other:app
"""


def app(**fields: Any) -> dict[str, Any]:
    """One application of a file."""
    return {"name": "shop", "import_path": "shop:app", **fields}


def wrong(**fields: Any) -> str:
    """What is said of a file that is wrong."""
    with pytest.raises(SettingsError) as caught:
        read(json.dumps(fields), "serve.json")
    return str(caught.value)


def test_a_file_of_ray_serves_is_read():
    """A port brings its file along; args keep their types."""
    config = read(FILE, "serve.yaml")
    shop, other = config.applications

    assert (shop.name, shop.route_prefix, shop.import_path) == ("shop", "/shop", "shop.app:build")
    assert (shop.args, shop.env_vars) == ({"size": "large", "layers": 3}, {"TOWN": "Ulm"})
    assert shop.source == 'shop.app:build {"size": "large", "layers": 3}'
    assert (other.route_prefix, other.args, other.deployments) == (None, {}, [])
    assert config.logging_config == LoggingConfig(log_level="DEBUG", encoding=EncodingType.JSON)
    assert config.proxy_location is ProxyLocation.EveryNode


def test_only_what_the_file_names_is_an_override():
    """null says nothing; a default that is written out is said."""
    (model,) = read(FILE, "serve.yaml").applications[0].deployments

    assert model.overrides().keys() == {"num_replicas", "autoscaling_config", "user_config", "ray_actor_options"}
    assert model.overrides()["user_config"] == {"threshold": 0.5}


def test_json_is_read_as_well():
    """Programs write it."""
    assert read(json.dumps({"applications": [app()]}), "serve.json").applications[0].name == "shop"


def test_the_defaults_are_ray_serves():
    """One application needs no name."""
    alone = ServeApplicationSchema(import_path="a:b")

    assert (alone.name, alone.route_prefix, alone.args, alone.runtime_env) == ("default", "/", {}, {})


def test_every_mistake_is_told_with_its_place_and_the_nearest_field():
    """A typo in line 200 of a file, found without counting brackets."""
    deployment = {"name": "Model", "num_replica": 2, "autoscaling_config": {"max_replica": 2}}
    text = wrong(applications=[app(deployments=[deployment], import_pth="x")], http_option={})

    assert text.startswith("serve.json is not valid:\n")
    place = "applications[shop].deployments[Model]"
    assert f"{place}.num_replica: there is no such field; did you mean num_replicas?" in text
    assert f"{place}.autoscaling_config.max_replica: there is no such field; did you mean max_replicas?" in text
    assert "applications[shop].import_pth: there is no such field; did you mean import_path?" in text
    assert "http_option: there is no such field; did you mean http_options?" in text


def test_a_field_that_resembles_none_is_answered_with_those_there_are():
    """Nothing is guessed."""
    assert "there is no such field; it has ['applications', 'controller_options'" in wrong(applications=[], zzz=1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"applications": [app(), app()]}, "Found multiple configs for applications ['shop']"),
        ({"applications": [app(name="")]}, "Application names must be nonempty."),
        (
            {"applications": [app(route_prefix="/a"), app(name="two", route_prefix="/a")]},
            "Found duplicate applications for route prefixes ['/a']",
        ),
        ({"applications": [app(route_prefix="api")]}, "applications[shop].route_prefix: route_prefix='api'"),
        ({"applications": [{"name": "x"}]}, "applications[x].import_path: Field required"),
        ({"applications": [app(runtime_env={"env_vars": {"A": 1}})]}, "a variable's value is text"),
        ({"applications": [app(autoscaling_policy={})]}, "set autoscaling_config.policy of deployments"),
        ({"applications": [app(deployments=[{"name": "M"}, {"name": "M"}])]}, "deployments ['M'] are listed more"),
        (
            {"applications": [app(deployments=[{"name": "M", "num_replicas": 0}])]},
            "applications[shop].deployments[M].num_replicas: num_replicas is expected to larger than 0",
        ),
        (
            {"applications": [app(deployments=[{"name": "M", "num_replicas": 2, "autoscaling_config": {}}])]},
            "Manually setting num_replicas is not allowed",
        ),
        ({"applications": [app(deployments=[{"name": "M", "ray_actor_options": []}])]}, "ray_actor_options is a dict"),
        ({"applications": [app(logging_config={"log_level": "loud"})]}, "log_level='loud'"),
        ({}, "applications: Field required"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_means_nothing_is_refused(fields, says):
    """Before anything is imported or deployed."""
    assert says in wrong(**fields)


@pytest.mark.parametrize(
    ("text", "says"),
    [("a: [", "serve.yaml cannot be read: while parsing"), ("", "is no config file"), ("- a", "is no config file")],
)
def test_what_is_no_file_of_this_kind_is_told_from_a_wrong_one(text, says):
    """With the line, when it is the YAML that is wrong."""
    with pytest.raises(SettingsError, match=says):
        read(text, "serve.yaml")


def test_routes_that_are_not_said_do_not_clash():
    """Most applications are called by handles and need none."""
    assert len(read(json.dumps({"applications": [app(), app(name="two")]}), "x.json").applications) == 2


def test_the_models_themselves_raise_value_errors():
    """As Ray Serve's do, for programs that build them."""
    with pytest.raises(ValueError, match="Found multiple configs"):
        ServeDeploySchema(applications=[ServeApplicationSchema(**app()), ServeApplicationSchema(**app())])
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ServeApplicationSchema.model_validate(app(nope=1))


def test_what_is_asked_for_and_not_given_is_said_with_what_to_do():
    """Nobody looks for a port that nobody listens on."""
    config = read(
        json.dumps(
            {
                "applications": [app(runtime_env={"pip": ["x"], "working_dir": "."}, external_scaler_enabled=True)],
                "http_options": {"port": 80},
                "target_capacity": 50,
                "tracing_config": {"x": 1},
            }
        ),
        "serve.json",
    )
    http, tracing, capacity, runtime_env, scaler = config.notes()
    assert http.startswith("http_options: no HTTP ingress is built in yet")
    assert tracing.startswith("tracing_config: ")
    assert capacity.startswith("target_capacity: not used; set min_replicas and max_replicas")
    assert (
        "only env_vars is used, not pip, working_dir: install code and packages where `qserve worker` runs"
        in runtime_env
    )
    assert "`qserve scale` always works" in scaler


def test_the_json_schema_knows_every_option():
    """Editors complete and check the file by it."""
    schema = ServeDeploySchema.model_json_schema()
    known = schema["$defs"]["DeploymentSchema"]["properties"].keys()

    assert known == DeploymentConfig.model_fields.keys() | {"name"}
    assert schema["additionalProperties"] is False


def test_what_is_deployed_is_a_file_that_deploys_it_again():
    """`config show > serve.yaml` is the way from a script to a file."""
    config = DeploymentConfig(num_replicas=3, user_config={"a": 1})
    spec = DeploymentSpec(
        app="shop", name="M", version="v", config=config, python="3.11", replicas=3, env_vars={"TOWN": "Ulm"}
    )
    deployed = AppSpec(
        name="shop",
        ingress="M",
        deployments=(spec,),
        deployed_at_s=1.0,
        deploy_id="d",
        route_prefix="/shop",
        source='shop:build {"size": 3}',
    )
    (again,) = read(json.dumps(as_config([deployed])), "serve.json").applications

    assert (again.name, again.route_prefix, again.import_path, again.args) == (
        "shop",
        "/shop",
        "shop:build",
        {"size": 3},
    )
    assert again.env_vars == {"TOWN": "Ulm"}
    assert again.deployments[0].overrides() == {"num_replicas": 3, "user_config": {"a": 1}}


def test_what_an_autoscaling_config_says_is_shown_even_where_it_is_the_default():
    """A target_ongoing_requests that is said is kept to; one that is not is chosen from what is measured."""
    said: dict[str, Any] = {"min_replicas": 0, "max_replicas": 4, "target_ongoing_requests": 2.0}
    config = DeploymentConfig(autoscaling_config=AutoscalingConfig(**said))
    spec = DeploymentSpec(app="shop", name="M", version="v", config=config, python="3.11", replicas=0)
    deployed = AppSpec(
        name="shop", ingress="M", deployments=(spec,), deployed_at_s=1.0, deploy_id="d", source="shop:app"
    )

    assert as_config([deployed])["applications"][0]["deployments"] == [{"name": "M", "autoscaling_config": said}]
