"""A bound application flattened to its deployments: applications nested in arguments become references to handles.

Pure: pickles, counts and hashes; knows nothing of Redis or of how a handle calls.
"""

from __future__ import annotations

import io
import logging
import pickle
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from qserve.deployment import Application
from qserve.errors import SerializationError
from qserve.fingerprint import fingerprint
from qserve.spec import AppSpec, DeploymentSpec

logger = logging.getLogger("qserve.graph")


@dataclass(frozen=True, slots=True)
class FlatApp:
    """An application's spec, and the pickled code of each deployment by its version."""

    spec: AppSpec
    code: dict[str, bytes]


def flatten(
    root: Application, *, name: str, deploy_id: str, now_s: float, route_prefix: str | None, force: bool = False
) -> FlatApp:
    """Walk the applications nested in `root` and pickle each one once.

    force  give every deployment a version of its own, so that equal code restarts too
    Raises SerializationError (a TypeError) "Could not serialize the deployment ..." when pickle refuses one.
    """
    walk = _Walk(name, deploy_id if force else "")
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

    def __init__(self, app: str, salt: str) -> None:
        self.app = app
        self.salt = salt
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
        version = fingerprint(blob, config, _source_of(node.deployment.func_or_class), self.salt.encode())
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
