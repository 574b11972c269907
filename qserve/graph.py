"""A bound application flattened to its deployments: applications nested in arguments become references to handles.

Pure: pickles, counts and hashes; knows nothing of Redis or of how a handle calls.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle

from qserve.config import DeploymentConfig
from qserve.deployment import Application, Deployment
from qserve.errors import SerializationError, SettingsError
from qserve.fingerprint import fingerprint
from qserve.spec import AppSpec, DeploymentSpec

logger = logging.getLogger("qserve.graph")


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a deploy says beside the code.

    options         options by deployment; they go before the code's
    env_vars        environment variables of all replicas; those of a deployment's own runtime_env go before them
    logging_config  for the deployments that say nothing of logging
    source          where the application comes from, for people
    """

    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    env_vars: Mapping[str, str] = field(default_factory=dict)
    logging_config: dict[str, Any] | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class FlatApp:
    """An application's spec, and the pickled code of each deployment by its version."""

    spec: AppSpec
    code: dict[str, bytes]


def flatten(
    root: Application,
    *,
    name: str,
    deploy_id: str,
    now_s: float,
    route_prefix: str | None,
    force: bool = False,
    overrides: Overrides | None = None,
) -> FlatApp:
    """Walk the applications nested in `root` and pickle each one once.

    force  give every deployment a version of its own, so that equal code restarts too
    Raises SerializationError (a TypeError) "Could not serialize the deployment ..." when pickle refuses one,
    SettingsError for overrides of a deployment that is not there or that are wrong.
    """
    overrides = overrides or Overrides()
    walk = _Walk(name, deploy_id if force else "", overrides)
    ingress = walk.visit(root)
    if unknown := sorted(overrides.options.keys() - walk.specs.keys()):
        raise SettingsError(f"Deployment {unknown[0]!r} does not exist. Available: {list(walk.specs)}.")
    spec = AppSpec(
        name=name,
        ingress=ingress,
        deployments=tuple(walk.specs.values()),
        deployed_at_s=now_s,
        deploy_id=deploy_id,
        route_prefix=route_prefix,
        source=overrides.source,
    )
    return FlatApp(spec, walk.code)


def load_code(blob: bytes, make_handle: Callable[[str, str], Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The class or function, and its arguments with `make_handle(app, deployment)` in place of each nested application.

    Runs code from the blob: verify its signature first.
    """

    class Loader(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return make_handle(*pid)

    target, args, kwargs = Loader(io.BytesIO(blob)).load()
    return target, args, kwargs


def same_code(version: str, other: str) -> bool:
    """Whether two versions build the same, though one of them was made to restart it."""
    return version.partition("-")[0] == other.partition("-")[0]


def is_restart(version: str) -> bool:
    """Whether a version was made to restart the code that it builds."""
    return "-" in version


def restarted(version: str, mark: str) -> str:
    """Another version of the same code, which its replicas start anew for.

    mark  unlike those of other restarts; no colon
    """
    return f"{version.partition('-')[0]}-{mark[:8]}"


class _Walk:
    """Names and pickles applications depth first. The same Application object twice is one deployment."""

    def __init__(self, app: str, salt: str, overrides: Overrides) -> None:
        self.app = app
        self.salt = salt
        self.overrides = overrides
        self.specs: dict[str, DeploymentSpec] = {}
        self.code: dict[str, bytes] = {}
        self._names: dict[int, str] = {}
        self._kept: list[Application] = []

    def visit(self, node: Application) -> str:
        if (known := self._names.get(id(node))) is not None:
            return known
        name = self._free_name(node.deployment.name)
        self._names[id(node)] = name
        self._kept.append(node)
        config = self._config(node.deployment, name)
        env_vars = dict(self.overrides.env_vars)
        blob = self._pickle(node, name)
        salt = json.dumps(sorted(env_vars.items())).encode() if env_vars else b""
        version = fingerprint(blob, config, _source_of(node.deployment.func_or_class), salt)
        if self.salt:
            version = restarted(version, self.salt)
        self.code[version] = blob
        self.specs[name] = DeploymentSpec(
            app=self.app,
            name=name,
            version=version,
            config=config,
            python=platform.python_version(),
            replicas=config.first_replicas,
            env_vars=env_vars,
        )
        return name

    def _config(self, deployment: Deployment, name: str) -> DeploymentConfig:
        """The deployment's options, with those that go before them."""
        said = dict(self.overrides.options.get(name, {}))
        if self.overrides.logging_config is not None and deployment.logging_config is None:
            said.setdefault("logging_config", self.overrides.logging_config)
        try:
            return deployment.options(**said).config if said else deployment.config
        except (TypeError, ValueError) as error:
            raise SettingsError(f"The options of {self.app}.{name} are not valid: {error}") from error

    def _free_name(self, wanted: str) -> str:
        taken = set(self._names.values())
        name = next(n for n in (wanted, *(f"{wanted}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)
        if name != wanted:
            logger.warning("Two different applications are named %r; one is deployed as %r.", wanted, name)
        return name

    def _pickle(self, node: Application, name: str) -> bytes:
        visit, app = self.visit, self.app

        class Dumper(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle publishes no types
            def persistent_id(self, obj: Any) -> tuple[str, str] | None:
                return (app, visit(obj)) if isinstance(obj, Application) else None

        buffer = io.BytesIO()
        try:
            Dumper(buffer, protocol=5).dump((node.deployment.func_or_class, node.init_args, node.init_kwargs))
        except (SerializationError, SettingsError):  # of one that is nested in it
            raise
        except Exception as error:
            raise SerializationError(
                f"Could not serialize the deployment {name!r}: {error}. Its class and the arguments of bind() are "
                "pickled to reach the replicas: open files, sockets and locks in the constructor instead."
            ) from error
        return buffer.getvalue()


def _source_of(target: Callable[..., Any]) -> bytes:
    """The source of the module that defines `target`, if replicas import it by name: its edits change the code."""
    name = getattr(target, "__module__", None)
    path = getattr(sys.modules.get(name or ""), "__file__", None)
    if name == "__main__" or path is None:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError:  # inside an archive
        return b""
