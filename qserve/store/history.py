"""What is wanted of applications, now and before: specs, their last versions and their code, changed in one step."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qserve.config import VERSION
from qserve.errors import SignatureError
from qserve.spec import AppSpec
from qserve.store import scripts
from qserve.store.link import Link
from qserve.wire.keys import ClusterKeys
from qserve.wire.messages import UnreadableVersion, open_control, seal_control
from qserve.wire.signing import Direction, KeyRing, Signer

# The present version and the five before it.
KEPT_VERSIONS = 6
# How often code is looked at again because something changed meanwhile; what stays is dropped with the next version.
_DROP_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Read:
    """An application as it was read; a later write changes it only if it is still the same.

    raw   its bytes in Redis; empty: it is not wanted
    spec  None when it is not wanted, or cannot be trusted or read
    """

    raw: bytes = b""
    spec: AppSpec | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """An application as it is to be wanted from now on.

    before  as it was read
    spec    None: not wanted any more
    is_new  begins an entry of its history; else it replaces the newest
    """

    before: Read
    spec: AppSpec | None
    is_new: bool = True


class History:
    """The wanted applications of a namespace, and what they were before."""

    def __init__(self, link: Link, keys: ClusterKeys, ring: KeyRing) -> None:
        self._link = link
        self._keys = keys
        self._ring = ring

    async def present(self, app: str) -> Read:
        """The application as it is now."""
        raw = await self._link.call("HGET", self._keys.apps, app)
        return Read() if raw is None else self._read(app, raw)

    async def read(self) -> dict[str, Read]:
        """Every application that is wanted."""
        flat = await self._link.call("HGETALL", self._keys.apps)
        return {_text(app): self._read(_text(app), raw) for app, raw in zip(flat[::2], flat[1::2], strict=True)}

    async def versions(self, app: str) -> list[AppSpec]:
        """The application's last versions, the present one first. Those that cannot be trusted or read are left out."""
        entries = await self._link.call("LRANGE", self._keys.history(app), 0, -1)
        return [spec for raw in entries if (spec := self._read(app, raw).spec) is not None]

    async def want(self, wishes: Mapping[str, Wish], code: Mapping[str, bytes]) -> bool:
        """Want all of these applications, by their names, in one step, and drop the code that only older versions had.

        code  pickled class and arguments, by their version
        False when one of them has changed since it was read: nothing is written. Raises TransportError.
        """
        names = [self._keys.apps, self._keys.generation, *(self._keys.history(app) for app in wishes)]
        arguments: list[str | bytes | int] = [self._keys.events, KEPT_VERSIONS, len(wishes)]
        for app, wish in wishes.items():
            sealed = b"" if wish.spec is None else seal_control(wish.spec.to_json(), self._signer("app", app))
            arguments += [app, wish.before.raw, sealed, int(wish.is_new)]
        for version, blob in code.items():
            names.append(self._keys.code(version))
            arguments.append(seal_control(blob, self._signer("code", version)))
        left = await self._link.script(scripts.WANT, names, arguments)
        if left is None:
            return False
        older = [self._read(_text(app), raw).spec for app, raw in zip(left[::2], left[1::2], strict=True)]
        # What is taken down may still run: the leader drops its code, at the end.
        going = [wish.before.spec for wish in wishes.values() if wish.spec is None]
        await self.drop_code(_versions(older) - _versions(going))
        return True

    async def drop_code(self, versions: Iterable[str]) -> None:
        """Remove the code of these versions, but for those that an application has or had in its history."""
        unwanted = set(versions)
        for _ in range(_DROP_ATTEMPTS if unwanted else 0):
            generation = await self._link.call("GET", self._keys.generation)
            unwanted -= await self._kept()
            names = [self._keys.generation, *(self._keys.code(version) for version in unwanted)]
            if not unwanted or await self._link.script(scripts.DROP, names, [generation or b""]):
                return

    def open(self, app: str, raw: bytes) -> AppSpec:
        """A spec as it stands in Redis. Raises SignatureError, UnreadableVersion."""
        opened = open_control(raw, self._signer("app", app))
        try:
            spec = AppSpec.model_validate_json(opened)
        except ValueError as error:
            text = f"This version of qserve ({VERSION}) cannot read it; was it deployed by a newer one? {error}"
            raise UnreadableVersion(text) from error
        if spec.name != app:  # only where nothing is signed
            raise SignatureError(f"It is the application {spec.name!r} under another name.")
        return spec

    async def _kept(self) -> set[str]:
        """The versions whose code somebody may start."""
        present = await self.read()
        pipe = await self._link.ready()
        lists = await asyncio.gather(*(pipe.call("LRANGE", self._keys.history(app), 0, -1) for app in present))
        before = [self._read(app, raw).spec for app, raws in zip(present, lists, strict=True) for raw in raws]
        return _versions([*(read.spec for read in present.values()), *before])

    def _read(self, app: str, raw: bytes) -> Read:
        try:
            return Read(raw, self.open(app, raw))
        except SignatureError:  # also what another version of qserve wrote
            return Read(raw)

    def _signer(self, *names: str) -> Signer:
        return self._ring.signer(Direction.CONTROL, self._keys.scope(*names))


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _versions(specs: Iterable[AppSpec | None]) -> set[str]:
    return {deployment.version for spec in specs if spec is not None for deployment in spec.deployments}
