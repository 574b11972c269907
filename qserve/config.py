"""Settings that users write: the process's environment, and a deployment's options (`options.py`), published here.

The only module that reads `QSERVE_*` environment variables.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qserve.errors import SettingsError
from qserve.options import (
    AUTO_PRESET,
    AutoscalingConfig,
    AutoscalingContext,
    AutoscalingPolicy,
    DeploymentConfig,
    Options,
)

__all__ = [
    "AUTO_PRESET",
    "AutoscalingConfig",
    "AutoscalingContext",
    "AutoscalingPolicy",
    "DeploymentConfig",
    "Options",
    "Settings",
]

VERSION = "0.1.0"
PROTOCOL_VERSION = 1
HEARTBEAT_S = 2.0
LEASE_S = 3 * HEARTBEAT_S
RESULT_TTL_S = 3600.0
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
# One line between a worker and its replica: the spec, with the user_config in it, or a traceback.
MAX_CONTROL_BYTES = 16 * 1024 * 1024
MAX_IN_FLIGHT = 10_000
# Lines that a worker keeps of each deployment's replicas, for `qserve logs`.
KEEP_LINES = 1000
MIN_SECRET_BYTES = 16
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
# The name of the variable that holds the key; for files that tell others where to write it.
SECRET_KEY = "QSERVE_SECRET_KEY"  # noqa: S105 (the name, not a key)


def read_secret(env: Mapping[str, str]) -> tuple[bytes, ...]:
    """The key ring from `QSERVE_SECRET_KEY` or the file it is in; empty when there is none.

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

    redis_url       None: no cluster is configured, `serve.run` starts an embedded one
    secrets         key ring; the first signs, all verify; empty means unsigned
    heartbeat_file  what a supervisor's probes look at (doors.py); a flag only, for children must not inherit it
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
    heartbeat_file: str | None = None

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


def supervised_env(*, redis_url: str, namespace: str, secret_file: str) -> dict[str, str]:
    """The variables of a process that a supervisor starts, with its key in a file."""
    return {
        "QSERVE_REDIS_URL": redis_url,
        "QSERVE_NAMESPACE": namespace,
        "QSERVE_SECRET_KEY_FILE": secret_file,
        "QSERVE_LOG_LEVEL": "INFO",
    }


def visible_devices() -> str | None:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; None: all that there are."""
    return os.environ.get(VISIBLE_DEVICES)


def _flag(env: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = env.get(name, "").strip().lower()
    if text in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
        return default if not text else text in ("1", "true", "yes", "on")
    raise SettingsError(f"{name}={text!r}: write 1 or 0")
