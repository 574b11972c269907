"""A bound application flattened to its deployments: applications nested in arguments become references to handles.

Pure: pickles, counts and hashes; knows nothing of Redis or of how a handle calls.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import pickletools
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle

from qserve.config import DeploymentConfig
from qserve.deployment import Application
from qserve.errors import SerializationError
from qserve.spec import AppSpec, DeploymentSpec

logger = logging.getLogger("qserve.graph")

# cloudpickle gives each class it sends by value a random id of 32 hex digits; it says nothing about the code.
_TRACKER_ID = re.compile(r"[0-9a-f]{32}")
_RESTART_FIELDS = ("ray_actor_options", "max_replicas_per_node", "max_retries", "max_ongoing_requests", "user_config")


@dataclass(frozen=True, slots=True)
class FlatApp:
    """An application's spec, and the pickled code of each deployment by its version."""

    spec: AppSpec
    code: dict[str, bytes]


def flatten(root: Application, *, name: str, deploy_id: str, now_s: float, route_prefix: str | None) -> FlatApp:
    """Walk the applications nested in `root` and pickle each one once.

    Raises SerializationError (a TypeError) "Could not serialize the deployment ..." when pickle refuses one.
    """
    walk = _Walk(name)
    ingress = walk.visit(root)
    spec = AppSpec(
        name=name,
        ingress=ingress,
        deployments=tuple(walk.specs.values()),
        deployed_at_s=now_s,
        deploy_id=deploy_id,
        route_prefix=route_prefix,
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


class _Walk:
    """Names and pickles applications depth first. The same Application object twice is one deployment."""

    def __init__(self, app: str) -> None:
        self.app = app
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
        config = node.deployment.config
        blob = self._pickle(node, name)
        version = fingerprint(blob, config)
        self.code[version] = blob
        self.specs[name] = DeploymentSpec(
            app=self.app,
            name=name,
            version=version,
            config=config,
            python=platform.python_version(),
            replicas=config.first_replicas,
        )
        return name

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
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(
                f"Could not serialize the deployment {name!r}: {error}. Its class and the arguments of bind() are "
                "pickled to reach the replicas: open files, sockets and locks in the constructor instead."
            ) from error
        return buffer.getvalue()


def fingerprint(blob: bytes, config: DeploymentConfig) -> str:
    """A deployment's version: equal for equal code, arguments and restarting options, in any process."""
    digest = hashlib.sha256()
    for opcode, argument, _position in pickletools.genops(blob):
        if isinstance(argument, str) and _TRACKER_ID.fullmatch(argument):
            continue
        digest.update(f"{opcode.name}={argument!r};".encode())
    digest.update(config.model_dump_json(include=set(_RESTART_FIELDS)).encode())
    return digest.hexdigest()[:16]
