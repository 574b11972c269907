"""Ray Serve's config file as models, and the models of the status: what `from ray.serve.schema import ...` becomes.

Says what a file means and whether it is right; builds nothing. `read` is the way in for a file.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qserve.config import DeploymentConfig
from qserve.deployment import checked_route_prefix
from qserve.errors import SettingsError
from qserve.spec import (
    ApplicationStatus,
    AppSpec,
    DeploymentSpec,
    DeploymentStatus,
    ReplicaState,
    ServeStatus,
    StatusTrigger,
)
from qserve.spec import ApplicationStatusInfo as ApplicationStatusOverview
from qserve.spec import DeploymentStatusInfo as DeploymentStatusOverview

__all__ = [
    "ApplicationStatus",
    "ApplicationStatusOverview",
    "DeploymentSchema",
    "DeploymentStatus",
    "DeploymentStatusOverview",
    "EncodingType",
    "HTTPOptions",
    "LoggingConfig",
    "ProxyLocation",
    "ReplicaState",
    "ServeApplicationSchema",
    "ServeDeploySchema",
    "ServeStatus",
    "StatusTrigger",
    "as_config",
    "gRPCOptions",
    "read",
    "source_of",
]

# What a replica's process gets of a runtime_env; the rest of it is Ray's own way to bring code to a host.
_RUNTIME_ENV = frozenset({"env_vars"})


class _Part(BaseModel):
    """A part of the file: a field that is not known is a slip of the pen."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EncodingType(StrEnum):
    """How log lines are written."""

    TEXT = "TEXT"
    JSON = "JSON"


class ProxyLocation(StrEnum):
    """Where Ray Serve starts its HTTP proxies."""

    Disabled = "Disabled"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"


class LoggingConfig(_Part):
    """How replicas log; Ray Serve's names and defaults."""

    encoding: EncodingType = EncodingType.TEXT
    log_level: int | str = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: list[str] = Field(default_factory=list)

    @field_validator("encoding", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: int | str) -> int | str:
        if isinstance(value, int):
            return value
        if value.upper() not in ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET"):
            raise ValueError(f"log_level={value!r}: it is DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return value.upper()


class HTTPOptions(_Part):
    """Where an HTTP ingress listens; Ray Serve's names and defaults."""

    host: str | None = "0.0.0.0"  # noqa: S104 (Ray Serve's default in a file)
    port: int = 8000
    root_path: str = ""
    request_timeout_s: float | None = Field(default=None, ge=0)
    keep_alive_timeout_s: int = 90
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None


class gRPCOptions(_Part):  # noqa: N801 (Ray Serve's name)
    """Where a gRPC ingress listens; Ray Serve's names and defaults."""

    port: int = 9000
    grpc_servicer_functions: list[str] = Field(default_factory=list)
    request_timeout_s: float | None = None
    enable_reflection: bool = False


class DeploymentSchema(DeploymentConfig):
    """Options that go before those of the code; a field that the file leaves out stays as the code has it."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_said(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            return options
        return {key: value for key, value in options.items() if value is not None or key == "max_ongoing_requests"}

    @model_validator(mode="after")
    def _one_way_to_scale(self) -> Self:
        if {"num_replicas", "autoscaling_config"} <= self.model_fields_set and self.num_replicas != "auto":
            raise ValueError("Manually setting num_replicas is not allowed when autoscaling_config is provided.")
        return self

    def overrides(self) -> dict[str, Any]:
        """The options that the file names, as `Deployment.options()` takes them."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set - {"name"})}


class ServeApplicationSchema(_Part):
    """One application of the file.

    import_path  "module:name" of an Application, or of a function that builds one
    args         what such a function is given
    runtime_env  its env_vars become the replicas'; code is installed where the workers run
    """

    name: str = "default"
    route_prefix: str | None = "/"
    import_path: str
    args: dict[str, Any] = Field(default_factory=dict)
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    deployments: list[DeploymentSchema] = Field(default_factory=list)
    logging_config: LoggingConfig | None = None
    autoscaling_policy: dict[str, Any] | None = None
    external_scaler_enabled: bool = False

    @field_validator("route_prefix")
    @classmethod
    def _a_prefix(cls, value: str | None) -> str | None:
        return checked_route_prefix(value)

    @field_validator("runtime_env")
    @classmethod
    def _env_vars_are_text(cls, value: dict[str, Any]) -> dict[str, Any]:
        env_vars = value.get("env_vars") or {}
        if not isinstance(env_vars, dict) or not all(isinstance(text, str) for text in env_vars.values()):
            raise ValueError(f"env_vars={env_vars!r}: a variable's value is text; quote numbers")
        return value

    @field_validator("autoscaling_policy")
    @classmethod
    def _policies_are_deployments(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            raise ValueError("there is no policy for a whole application: set autoscaling_config.policy of deployments")
        return value

    @field_validator("deployments")
    @classmethod
    def _once_each(cls, value: list[DeploymentSchema]) -> list[DeploymentSchema]:
        if twice := _repeated(deployment.name for deployment in value):
            raise ValueError(f"the deployments {twice} are listed more than once")
        return value

    @property
    def env_vars(self) -> dict[str, str]:
        """Environment variables of its replicas."""
        return dict(self.runtime_env.get("env_vars") or {})

    @property
    def source(self) -> str:
        """Where it comes from, in a line."""
        return source_of(self.import_path, self.args)

    def notes(self) -> list[str]:
        """What the file asks for and does not get, with what to do instead."""
        notes = []
        if unused := sorted(self.runtime_env.keys() - _RUNTIME_ENV):
            notes.append(
                f"{self.name}: of runtime_env only env_vars is used, not {', '.join(unused)}: install code and "
                "packages where `qserve worker` runs, and start it there."
            )
        if self.external_scaler_enabled:
            notes.append(f"{self.name}: external_scaler_enabled needs no switch here: `qserve scale` always works.")
        return notes


class ServeDeploySchema(_Part):
    """A whole file: the applications that are to run, and no others."""

    applications: list[ServeApplicationSchema]
    proxy_location: ProxyLocation | None = None
    http_options: HTTPOptions | None = None
    grpc_options: gRPCOptions | None = None
    logging_config: LoggingConfig | None = None
    controller_options: dict[str, Any] | None = None
    tracing_config: dict[str, Any] | None = None
    target_capacity: float | None = Field(default=None, ge=0, le=100)

    @field_validator("applications")
    @classmethod
    def _apart(cls, value: list[ServeApplicationSchema]) -> list[ServeApplicationSchema]:
        if not all(app.name for app in value):
            raise ValueError("Application names must be nonempty.")
        if twice := _repeated(app.name for app in value):
            raise ValueError(f"Found multiple configs for applications {twice}. Please remove all duplicates.")
        said = (app.route_prefix for app in value if "route_prefix" in app.model_fields_set)
        if twice := _repeated(prefix for prefix in said if prefix is not None):
            raise ValueError(f"Found duplicate applications for route prefixes {twice}: each needs one of its own.")
        return value

    def notes(self) -> list[str]:
        """What the file asks for and does not get, with what to do instead."""
        ingress = [name for name in ("proxy_location", "http_options", "grpc_options") if getattr(self, name)]
        unused = [name for name in ("controller_options", "tracing_config") if getattr(self, name)]
        notes = []
        if ingress:
            notes.append(f"{', '.join(ingress)}: no HTTP ingress is built in yet; a web backend holds handles instead.")
        if unused:
            notes.append(f"{', '.join(unused)}: these settings of Ray's own processes change nothing here.")
        if self.target_capacity is not None:
            notes.append("target_capacity: not used; set min_replicas and max_replicas of the deployments.")
        return [*notes, *(note for app in self.applications for note in app.notes())]


def read(text: str, name: str) -> ServeDeploySchema:
    """The config file of that name, YAML or JSON. Raises SettingsError with every mistake and the nearest field."""
    try:
        data = _parse(text, is_json=name.endswith(".json"))
    except ValueError as error:
        raise SettingsError(f"{name} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{name} is no config file: it begins with `applications:`, a list of them.")
    try:
        return ServeDeploySchema.model_validate(data)
    except ValidationError as error:
        wrong = [f"  {_place(data, mistake['loc'])}: {_mend(mistake)}" for mistake in error.errors()]
        raise SettingsError("\n".join((f"{name} is not valid:", *wrong))) from error
    except TypeError as error:  # a value of the wrong kind, as the decorator tells it
        raise SettingsError(f"{name} is not valid: {error}") from error


def source_of(import_path: str, args: Mapping[str, Any]) -> str:
    """Where an application comes from, in a line: the import path, and the arguments as JSON."""
    return f"{import_path} {json.dumps(dict(args))}" if args else import_path


def as_config(apps: Iterable[AppSpec]) -> dict[str, Any]:
    """Deployed applications as the config file that deploys them again; only what differs from the defaults.

    An application that was deployed from Python has no import_path.
    """
    return {"applications": [_app_config(app) for app in apps]}


def _app_config(app: AppSpec) -> dict[str, Any]:
    import_path, _, args = app.source.partition(" ")
    config: dict[str, Any] = {"name": app.name, "route_prefix": app.route_prefix}
    if import_path:
        config["import_path"] = import_path
    if args:
        config["args"] = json.loads(args)
    if env_vars := {key: value for spec in app.deployments for key, value in spec.env_vars.items()}:
        config["runtime_env"] = {"env_vars": env_vars}
    config["deployments"] = [_deployment_config(spec) for spec in app.deployments]
    return config


def _deployment_config(spec: DeploymentSpec) -> dict[str, Any]:
    options = spec.config.model_dump(mode="json", exclude_defaults=True)
    if spec.config.autoscaling_config is not None:
        options.pop("num_replicas", None)  # "auto" was a preset of what stands there
        # Which of its fields were set has a meaning, be it to their defaults: all of those, and no others.
        options["autoscaling_config"] = spec.config.autoscaling_config.model_dump(mode="json")
    return {"name": spec.name, **options}


def _parse(text: str, *, is_json: bool) -> Any:
    if is_json:
        return json.loads(text)
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _place(data: Any, path: tuple[int | str, ...]) -> str:
    """Where a mistake stands, with names where the file has them: `applications[shop].deployments[Model].name`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            data = data[part] if isinstance(data, list) else None
            text += f"[{data.get('name', part) if isinstance(data, dict) else part}]"
        else:
            data = data.get(part) if isinstance(data, dict) else None
            text += f".{part}" if text else part
    return text


def _mend(mistake: Any) -> str:
    """What is wrong with a field, in words."""
    if mistake["type"] != "extra_forbidden":
        return str(mistake["msg"]).removeprefix("Value error, ")
    known = _fields_at(mistake["loc"][:-1])
    near = difflib.get_close_matches(str(mistake["loc"][-1]), known, n=1)
    return f"there is no such field; did you mean {near[0]}?" if near else f"there is no such field; it has {known}"


def _fields_at(path: Iterable[int | str]) -> list[str]:
    """The fields of the model at this place of the file."""
    model: type[BaseModel] = ServeDeploySchema
    for part in path:
        if isinstance(part, str):
            model = _model_in(model.model_fields[part].annotation) or model
    return sorted(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds: itself, in a list, or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)
