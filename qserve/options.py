"""What users declare of a deployment: the options of `@serve.deployment`. Field names and defaults are Ray Serve's.

Published by `qserve.config`, from where everybody imports them.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

_ACTOR_OPTIONS = frozenset(
    {
        "accelerator_type",
        "memory",
        "num_cpus",
        "num_gpus",
        "resources",
        "runtime_env",
        "label_selector",
        "fallback_strategy",
    }
)

_AMOUNTS = ("num_cpus", "num_gpus", "memory")

# The validation context of what was read from Redis, where a newer version may have added options.
_FROM_RECORD = "from a record"


class Options(BaseModel):
    """What users declare: an option that is not known is a slip of the pen. In a record it is passed over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _pass_over_newer_options(cls, options: Any, info: ValidationInfo) -> Any:
        if info.context != _FROM_RECORD or not isinstance(options, dict):
            return options
        return {name: value for name, value in options.items() if name in cls.model_fields}


class AutoscalingPolicy(Options):
    """Which function decides the number of replicas: an import path ("module:function"), or the callable itself.

    policy_function  takes an AutoscalingContext, returns (number of replicas, new state); a class is constructed once
                     with `policy_kwargs` and then called. The controllers import it: its module is installed there.
    policy_kwargs    further keyword arguments; JSON
    """

    policy_function: str = "qserve.controller.autoscale:queue_policy"
    policy_kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("policy_function", mode="before")
    @classmethod
    def _importable(cls, value: Any) -> Any:
        if not callable(value):
            return value
        module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
        if module in ("", "__main__") or not name or "<" in name:
            raise ValueError(
                f"The policy {value!r} cannot be imported by the controllers: define it at the top of a module that is "
                'installed where `qserve autoscaler` runs, and name it as "module:function".'
            )
        return f"{module}:{name}"


# Names of older versions of Ray Serve, and what they are called now.
_OLD_NAMES = {
    "smoothing_factor": ("upscaling_factor", "downscaling_factor"),
    "upscale_smoothing_factor": ("upscaling_factor",),
    "downscale_smoothing_factor": ("downscaling_factor",),
    "target_num_ongoing_requests_per_replica": ("target_ongoing_requests",),
}


class AutoscalingConfig(Options):
    """How a deployment's replicas follow its load; Ray Serve's names and defaults.

    target_queue_wait_s  qserve's own: scale so that a call waits no longer than this, from the measured service time
    """

    min_replicas: int = Field(default=1, ge=0)
    initial_replicas: int | None = Field(default=None, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=2.0, gt=0)
    target_queue_wait_s: float | None = Field(default=None, gt=0)
    upscale_delay_s: float = Field(default=30.0, ge=0)
    downscale_delay_s: float = Field(default=600.0, ge=0)
    downscale_to_zero_delay_s: float | None = Field(default=None, ge=0)
    look_back_period_s: float = Field(default=30.0, gt=0)
    upscaling_factor: float | None = Field(default=None, gt=0)
    downscaling_factor: float | None = Field(default=None, gt=0)
    aggregation_function: Literal["mean", "max", "min"] = "mean"
    metrics_interval_s: float = Field(default=10.0, gt=0)
    policy: AutoscalingPolicy | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, options: Any) -> Any:
        if not isinstance(options, dict) or not _OLD_NAMES.keys() & options.keys():
            return options
        renamed = {name: value for name, value in options.items() if name not in _OLD_NAMES}
        for old, names in _OLD_NAMES.items():
            if options.get(old) is not None:
                warnings.warn(f"autoscaling_config: {old} is {' and '.join(names)} now.", DeprecationWarning, 2)
                renamed = dict.fromkeys(names, options[old]) | renamed
        return renamed

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is below min_replicas={self.min_replicas}")
        initial = self.initial_replicas
        if initial is not None and not self.min_replicas <= initial <= self.max_replicas:
            raise ValueError(f"initial_replicas={initial} is outside {self.min_replicas}..{self.max_replicas}")
        return self

    @model_serializer(mode="wrap")
    def _as_it_was_set(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that were left out: which were set decides whether a policy may choose for itself."""
        return {name: value for name, value in write(self).items() if name in self.model_fields_set}

    @property
    def first_replicas(self) -> int:
        """How many replicas a first deploy starts."""
        return self.min_replicas if self.initial_replicas is None else self.initial_replicas


@dataclass(frozen=True, slots=True)
class AutoscalingContext:
    """What a policy is told; Ray Serve's field names. Times are seconds of the epoch.

    total_num_requests      waiting and running calls, aggregated over look_back_period_s
    total_queued_requests   calls that wait now
    total_running_requests  calls that run now
    running_replicas        ids
    policy_state            what the policy returned the last time
    oldest_wait_s           qserve's own: how long the oldest waiting call has waited; 0 when none waits
    service_time_s          qserve's own: mean time that a call holds a slot, measured; None before any call ran
    arrival_rate            qserve's own: calls per second, lately
    new_requests            qserve's own: calls that came since the last look
    cold_start_s            qserve's own: how long a replica took to start, lately; None before any was seen to
    """

    deployment_name: str
    app_name: str
    config: AutoscalingConfig
    current_num_replicas: int
    target_num_replicas: int
    total_num_requests: float
    total_queued_requests: float
    total_running_requests: float
    current_time: float
    capacity_adjusted_min_replicas: int
    capacity_adjusted_max_replicas: int
    running_replicas: tuple[str, ...] = ()
    policy_state: dict[str, Any] = field(default_factory=dict)
    aggregated_metrics: dict[str, float] = field(default_factory=dict)
    raw_metrics: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    last_scale_up_time: float | None = None
    last_scale_down_time: float | None = None
    max_ongoing_requests: int = 5
    oldest_wait_s: float = 0.0
    service_time_s: float | None = None
    arrival_rate: float = 0.0
    new_requests: int = 0
    cold_start_s: float | None = None

    @property
    def deployment_id(self) -> str:
        """Application and deployment."""
        return f"{self.app_name}.{self.deployment_name}"


AUTO_PRESET = {"min_replicas": 1, "max_replicas": 100, "target_ongoing_requests": 2}


# What changing an option costs. Those in none of these sets cost nothing: they are the controller's alone.
RESTARTING = frozenset(
    {
        "ray_actor_options",
        "max_replicas_per_node",
        "placement_group_bundles",
        "placement_group_strategy",
        "placement_group_bundle_label_selector",
        "gang_scheduling_config",
        "deployment_actors",
    }
)
RECONFIGURING = frozenset(
    {
        "user_config",
        "max_ongoing_requests",
        "graceful_shutdown_wait_loop_s",
        "health_check_period_s",
        "health_check_timeout_s",
        "graceful_shutdown_timeout_s",
        "max_retries",
        "max_calls_per_replica",
        "max_replica_rss",
        "logging_config",
    }
)


class DeploymentConfig(Options):
    """The options of `@serve.deployment`. Those that have no meaning on a pull queue are kept and ignored.

    max_calls_per_replica  a replica that took so many calls is replaced, after its replacement runs
    max_replica_rss        bytes of resident memory above which a replica is replaced likewise; measured each heartbeat
    placement_group_strategy  "PACK" fills one node before the next; else replicas are spread over the nodes
    """

    num_replicas: int | Literal["auto"] = 1
    autoscaling_config: AutoscalingConfig | None = None
    max_ongoing_requests: int = Field(default=5, gt=0)
    max_queued_requests: int = -1
    max_retries: int = Field(default=2, ge=0)
    user_config: Any = None
    health_check_period_s: float = Field(default=10.0, gt=0)
    health_check_timeout_s: float = Field(default=30.0, gt=0)
    graceful_shutdown_wait_loop_s: float = Field(default=2.0, ge=0)
    graceful_shutdown_timeout_s: float = Field(default=20.0, ge=0)
    ray_actor_options: dict[str, Any] = Field(default_factory=lambda: {"num_cpus": 1})
    max_replicas_per_node: int | None = Field(default=None, ge=1, le=100)
    max_constructor_retry_count: int = Field(default=20, ge=1)
    max_calls_per_replica: int | None = Field(default=None, ge=1)
    max_replica_rss: int | None = Field(default=None, ge=1)
    logging_config: dict[str, Any] | None = None
    backpressure_config: dict[str, Any] | None = None
    request_router_config: dict[str, Any] | None = None
    rolling_update_percentage: float = Field(default=0.2, gt=0, le=1)
    max_surge_percent: float = Field(default=0, ge=0, le=100)
    placement_group_bundles: list[dict[str, Any]] | None = None
    placement_group_strategy: str | None = None
    placement_group_bundle_label_selector: list[dict[str, Any]] | None = None
    gang_scheduling_config: dict[str, Any] | None = None
    deployment_actors: Any = None

    @field_validator("num_replicas")
    @classmethod
    def _some_replicas(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("num_replicas is expected to larger than 0")
        return value

    @field_validator("max_queued_requests")
    @classmethod
    def _queue_bound(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("max_queued_requests is -1 (no limit) or at least 1")
        return value

    @field_validator("user_config")
    @classmethod
    def _json_able(cls, value: Any) -> Any:
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(f"user_config is not JSON-serializable: {error}") from error
        return value

    @field_validator("ray_actor_options", mode="before")
    @classmethod
    def _known_actor_options(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"ray_actor_options is a dict, not {value!r}")
        unknown = sorted(value.keys() - _ACTOR_OPTIONS)
        if unknown and info.context != _FROM_RECORD:
            raise ValueError(f"ray_actor_options has unknown keys {unknown}; it knows {sorted(_ACTOR_OPTIONS)}")
        amounts = {name: value[name] for name in _AMOUNTS if value.get(name) is not None} | (
            value.get("resources") or {}
        )
        for name, amount in amounts.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
                raise ValueError(f"ray_actor_options: {name}={amount!r} is no amount of a resource: a number >= 0")
        gpus = amounts.get("num_gpus", 0)
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"ray_actor_options: num_gpus={gpus!r}: a share of one GPU, or whole GPUs")
        return value

    @model_validator(mode="after")
    def _one_way_to_place(self) -> Self:
        if self.max_replicas_per_node is not None and (self.placement_group_bundles or self.gang_scheduling_config):
            raise ValueError("max_replicas_per_node cannot be set beside placement groups or gang scheduling.")
        return self

    @classmethod
    def from_record(cls, options: Any) -> Self:
        """The options as Redis keeps them; those that a newer version added are passed over. Raises ValueError."""
        try:
            return cls.model_validate(options, context=_FROM_RECORD)
        except TypeError as error:  # as users are told of a value of the wrong kind
            raise ValueError(str(error)) from error

    @property
    def resources(self) -> dict[str, float]:
        """What one replica takes of its node, by name; `num_cpus` is 1 where nothing is said. Nothing of amount 0."""
        options = self.ray_actor_options
        named = {"num_cpus": options.get("num_cpus", 1), **{name: options.get(name) for name in ("num_gpus", "memory")}}
        named |= options.get("resources") or {}
        return {name: float(amount) for name, amount in named.items() if amount}

    @property
    def label_selector(self) -> dict[str, str]:
        """Labels that a node must have; "!value" excludes, "in(a,b)" lists."""
        return {str(key): str(value) for key, value in (self.ray_actor_options.get("label_selector") or {}).items()}

    @property
    def env_vars(self) -> dict[str, str]:
        """Environment variables of the replica process, from `runtime_env`."""
        runtime_env = self.ray_actor_options.get("runtime_env") or {}
        return {str(key): str(value) for key, value in (runtime_env.get("env_vars") or {}).items()}

    @property
    def first_replicas(self) -> int:
        """How many replicas a first deploy starts."""
        if self.autoscaling_config is not None:
            return self.autoscaling_config.first_replicas
        return 1 if self.num_replicas == "auto" else self.num_replicas
