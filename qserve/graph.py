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
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import cloudpickle

from qserve.config import DeploymentConfig
from qserve.deployment import Application
from qserve.errors import SerializationError
from qserve.spec import AppSpec, DeploymentSpec

logger = logging.getLogger("qserve.graph")

# Whether equal constants are one object, and so whether a pickle repeats or remembers them, differs between processes.
_CONSTANTS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "STACK_GLOBAL"})
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
    options = config.model_dump_json(include=set(_RESTART_FIELDS))
    return _digest(_built_by(blob), options.encode()).hex()[:16]


def _built_by(blob: bytes) -> bytes:
    """The digest of what a pickle builds. It follows the pickle's own stack, with digests in the place of objects.

    Two things that differ between processes and say nothing of the code are left out: the order of sets, and the random
    ids that cloudpickle gives to the classes it sends by value. Nothing is loaded.
    """
    stack: list[bytes] = []
    marks: list[int] = []
    memo: list[bytes] = []
    done: list[bytes] = []
    numbers, last = count(), ""
    for opcode, argument, _position in pickletools.genops(blob):
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif opcode.name == "MEMOIZE":  # a constant is known by its value, what may still grow by its number
            memo.append(stack[-1] if last in _CONSTANTS else _digest(b"memo", _text(next(numbers))))
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif opcode.name == "POP":  # what a call did to an object, such as to fill in a class body: its result is None
            done.append(stack.pop())
        elif opcode.name != "STOP":
            _step(stack, marks, opcode, _text(argument))
        last = opcode.name
    return _digest(stack[-1], *done)


def _step(stack: list[bytes], marks: list[int], opcode: pickletools.OpcodeInfo, argument: bytes) -> None:
    """Replace what an operation takes from the stack by the digest of what it makes of it."""
    items: list[bytes] = []
    fixed = len(opcode.stack_before)
    if pickletools.stackslice in opcode.stack_before:
        items = _pop(stack, marks.pop())
        fixed -= 2  # the mark and the slice above it
    if opcode.name in ("ADDITEMS", "FROZENSET"):
        items.sort()
    elif opcode.name == "TUPLE" and stack and stack[-1] in _SKELETONS:
        del items[-2:]  # the random id, and a place for extensions
    owners = _pop(stack, len(stack) - fixed)
    if opcode.stack_after:
        stack.append(_digest(opcode.name.encode(), argument, *owners, *items))


def _pop(stack: list[bytes], start: int) -> list[bytes]:
    popped = stack[start:]
    del stack[start:]
    return popped


def _text(argument: object) -> bytes:
    return bytes(argument) if isinstance(argument, bytes | bytearray) else repr(argument).encode()


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.digest()


def _import_of(module: str, name: str) -> bytes:
    names = [_digest(b"SHORT_BINUNICODE", _text(text)) for text in (module, name)]
    return _digest(b"STACK_GLOBAL", _text(None), *names)


_SKELETONS = frozenset(
    _import_of("cloudpickle.cloudpickle", name) for name in ("_make_skeleton_class", "_make_skeleton_enum")
)
