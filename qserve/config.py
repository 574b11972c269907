"""Settings that users write: a deployment's options and the process's environment.

The only module that reads `QSERVE_*` environment variables. Field names and defaults are Ray Serve's.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from qserve.errors import SettingsError

VERSION = "0.1.0"
PROTOCOL_VERSION = 1
HEARTBEAT_S = 2.0
LEASE_S = 3 * HEARTBEAT_S
RESULT_TTL_S = 3600.0
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
# One line between a worker and its replica: the spec, with the user_config in it, or a traceback.
MAX_CONTROL_BYTES = 16 * 1024 * 1024
MAX_IN_FLIGHT = 10_000
MIN_SECRET_BYTES = 16

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


# The validation context of what was read from Redis, where a newer version may have added options.
_FROM_RECORD = "from a record"


class _Options(BaseModel):
    """What users declare: an option that is not known is a slip of the pen. In a record it is passed over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _pass_over_newer_options(cls, options: Any, info: ValidationInfo) -> Any:
        if info.context != _FROM_RECORD or not isinstance(options, dict):
            return options
        return {name: value for name, value in options.items() if name in cls.model_fields}


class AutoscalingPolicy(_Options):
    """Which function decides the number of replicas: an import path, or the callable itself."""

    policy_function: str | Callable[..., Any] = "qserve.controller.autoscale:ray_policy"
    policy_kwargs: dict[str, Any] = Field(default_factory=dict)


class AutoscalingConfig(_Options):
    """How a deployment's replicas follow its load; Ray Serve's names and defaults."""

    min_replicas: int = Field(default=1, ge=0)
    initial_replicas: int | None = Field(default=None, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=2.0, gt=0)
    upscale_delay_s: float = Field(default=30.0, ge=0)
    downscale_delay_s: float = Field(default=600.0, ge=0)
    downscale_to_zero_delay_s: float | None = Field(default=None, ge=0)
    look_back_period_s: float = Field(default=30.0, gt=0)
    upscaling_factor: float | None = Field(default=None, gt=0)
    downscaling_factor: float | None = Field(default=None, gt=0)
    aggregation_function: Literal["mean", "max", "min"] = "mean"
    metrics_interval_s: float = Field(default=10.0, gt=0)
    policy: AutoscalingPolicy | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is below min_replicas={self.min_replicas}")
        initial = self.initial_replicas
        if initial is not None and not self.min_replicas <= initial <= self.max_replicas:
            raise ValueError(f"initial_replicas={initial} is outside {self.min_replicas}..{self.max_replicas}")
        return self

    @property
    def first_replicas(self) -> int:
        """How many replicas a first deploy starts."""
        return self.min_replicas if self.initial_replicas is None else self.initial_replicas


AUTO_PRESET = {"min_replicas": 1, "max_replicas": 100, "target_ongoing_requests": 2}


class DeploymentConfig(_Options):
    """The options of `@serve.deployment`. Those that have no meaning on a pull queue are kept and ignored."""

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
    def first_replicas(self) -> int:
        """How many replicas a first deploy starts."""
        if self.autoscaling_config is not None:
            return self.autoscaling_config.first_replicas
        return 1 if self.num_replicas == "auto" else self.num_replicas


def read_secret(env: Mapping[str, str]) -> tuple[bytes, ...]:
    """The key ring from `QSERVE_SECRET_KEY` or the file it is in; newest first, empty when there is none.

    Several keys stand on several lines, or separated by commas: the first signs, all verify.
    """
    text = env.get("QSERVE_SECRET_KEY", "")
    if path := env.get("QSERVE_SECRET_KEY_FILE"):
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"QSERVE_SECRET_KEY_FILE={path!r} cannot be read: {error}") from error
        if not text.replace(",", "").strip():  # a secret was meant: never run unsigned instead
            raise SettingsError(f"QSERVE_SECRET_KEY_FILE={path!r} holds no key. `qserve secret new` prints one.")
    keys = tuple(part.strip().encode() for part in text.replace(",", "\n").splitlines() if part.strip())
    if short := [index for index, key in enumerate(keys) if len(key) < MIN_SECRET_BYTES]:
        raise SettingsError(
            f"Secret key number {short[0] + 1} has fewer than {MIN_SECRET_BYTES} bytes. "
            "`qserve secret new` prints a good one."
        )
    return keys


@dataclass(frozen=True, slots=True)
class Settings:
    """Where a process finds its cluster, and how it signs and logs.

    redis_url  None: no cluster is configured, `serve.run` starts an embedded one
    secrets    key ring, newest first; empty means unsigned
    """

    redis_url: str | None = None
    namespace: str = "default"
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    insecure: bool = False
    log_level: str = "WARNING"
    log_format: str = "text"
    broker_binary: str | None = None
    data_dir: str | None = None
    runtime_dir: str | None = None
    uvloop: bool = True

    def __post_init__(self) -> None:
        if not self.namespace or set(self.namespace) & set(":{} \n"):
            raise SettingsError(
                f"The namespace {self.namespace!r} (QSERVE_NAMESPACE) must not be empty nor hold any of ':{{}} '."
            )
        if self.log_level not in logging.getLevelNamesMapping():
            raise SettingsError(
                f"The log level {self.log_level!r} (QSERVE_LOG_LEVEL) is not one of DEBUG, INFO, WARNING, ERROR."
            )
        if self.log_format not in ("text", "json"):
            raise SettingsError(f"The log format {self.log_format!r} (QSERVE_LOG_FORMAT) is neither 'text' nor 'json'.")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, *, log_level: str = "WARNING") -> Settings:
        """Read the `QSERVE_*` variables. Raises SettingsError when one is not valid.

        log_level  the one to use where the environment names none
        """
        env = os.environ if env is None else env
        return cls(
            redis_url=env.get("QSERVE_REDIS_URL") or None,
            namespace=env.get("QSERVE_NAMESPACE", "default"),
            secrets=read_secret(env),
            insecure=_flag(env, "QSERVE_INSECURE", default=False),
            log_level=(env.get("QSERVE_LOG_LEVEL") or log_level).upper(),
            log_format=env.get("QSERVE_LOG_FORMAT", "text"),
            broker_binary=env.get("QSERVE_BROKER_BINARY") or None,
            data_dir=env.get("QSERVE_DATA_DIR") or None,
            runtime_dir=env.get("XDG_RUNTIME_DIR") or None,
            uvloop=_flag(env, "QSERVE_UVLOOP", default=True),
        )

    def child_env(self) -> dict[str, str]:
        """The environment in which a child process reads these same settings."""
        env = {name: value for name, value in os.environ.items() if name != "QSERVE_SECRET_KEY_FILE"}
        env.update(
            QSERVE_REDIS_URL=self.redis_url or "",
            QSERVE_NAMESPACE=self.namespace,
            QSERVE_SECRET_KEY="\n".join(key.decode() for key in self.secrets),
            QSERVE_INSECURE="1" if self.insecure else "0",
            QSERVE_LOG_LEVEL=self.log_level,
            QSERVE_LOG_FORMAT=self.log_format,
            QSERVE_UVLOOP="1" if self.uvloop else "0",
        )
        return env

    def shell_exports(self, *, with_secrets: bool) -> str:
        """Lines that turn a shell to this cluster; with the secrets, for a file that only its owner can read."""
        chosen = {"QSERVE_REDIS_URL": self.redis_url or "", "QSERVE_NAMESPACE": self.namespace}
        if with_secrets:
            chosen["QSERVE_SECRET_KEY"] = ",".join(key.decode() for key in self.secrets)
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in chosen.items())


def _flag(env: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = env.get(name, "").strip().lower()
    if text in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
        return default if not text else text in ("1", "true", "yes", "on")
    raise SettingsError(f"{name}={text!r}: write 1 or 0")
