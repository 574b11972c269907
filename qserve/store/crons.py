"""Recurring calls as they are kept: a sealed record for each name, of which a scheduler makes the call of each run."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from functools import cached_property

from pydantic import ConfigDict

from qserve.errors import BackPressureError, DeploymentUnavailableError, QserveError, SignatureError, TransportError
from qserve.spec import Record
from qserve.store import calls
from qserve.store.connection import refused
from qserve.store.state import Change, ClusterState
from qserve.wire.keys import CALL_ID_BYTES, deployment_keys
from qserve.wire.messages import Call, open_control, seal_call, seal_control
from qserve.wire.signing import Direction, KeyRing, Signer

logger = logging.getLogger("qserve.store")

# What the events channel tells when one was registered or removed; its name follows.
CRON_EVENT = "cron "
_MOMENT_BYTES = 6


class CronRecord(Record):
    """One recurring call.

    expression       when it runs: five cron fields, or six of which the first are seconds
    payload          its arguments, encoded as a call's with `serializer` and `flags`
    limit            most calls that may wait for the deployment; -1: no limit
    misfire_grace_s  how late a run may be
    since_s          seconds of the epoch; runs before it do not count
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_bytes="base64", val_json_bytes="base64")

    name: str
    expression: str
    timezone: str
    app: str
    deployment: str
    method: str
    payload: bytes
    serializer: int
    flags: int
    limit: int
    misfire_grace_s: float
    since_s: float

    @cached_property
    def revision(self) -> str:
        """A hash of all but `since_s`: registered again without a change, it is the same one."""
        return hashlib.sha256(self.model_dump_json(exclude={"since_s"}).encode()).hexdigest()[:12]

    def has_schedule_of(self, other: CronRecord) -> bool:
        """Whether both run at the same times."""
        return (self.expression, self.timezone) == (other.expression, other.timezone)


class Crons:
    """The recurring calls of one namespace."""

    def __init__(self, state: ClusterState, ring: KeyRing) -> None:
        self._state = state
        self._link = state.link
        self._keys = state.keys
        self._ring = ring

    async def register(self, record: CronRecord) -> CronRecord:
        """Keep a recurring call; one of the same name is replaced. Returns it as it is kept. Raises SignatureError.

        One that runs at the same times as the one that it replaces goes on where that was, so that no run is missed.
        """
        await self._state.check_seal()
        raw = await self._link.call("HGET", self._keys.crons, record.name)
        before = self._known(record.name, raw)
        if before is not None and before.has_schedule_of(record):
            record = record.model_copy(update={"since_s": before.since_s})
        sealed = seal_control(record.to_json(), self._signer(record.name))
        if sealed != raw:  # another key of the ring makes another seal: it is written again
            await self._write(record.name, sealed)
        return record

    async def remove(self, name: str) -> bool:
        """It runs no more. False when there is none of that name."""
        known = await self._link.call("HEXISTS", self._keys.crons, name)
        if known:
            await self._write(name, None)
        return bool(known)

    async def get(self, name: str) -> CronRecord | None:
        """The recurring call of that name. Raises SignatureError when it cannot be trusted."""
        raw = await self._link.call("HGET", self._keys.crons, name)
        return None if raw is None else self._open(name, raw)

    async def all(self) -> dict[str, CronRecord]:
        """All by their names, without those that cannot be trusted or read: these do not run."""
        flat = await self._link.call("HGETALL", self._keys.crons)
        found: dict[str, CronRecord] = {}
        for field, raw in zip(flat[::2], flat[1::2], strict=True):
            name = field.decode(errors="replace")
            try:
                found[name] = self._open(name, raw)
            except SignatureError as error:
                logger.warning("The recurring call %r does not run: %s", name, error)
        return found

    async def fire(self, record: CronRecord, due_s: float) -> None:
        """Put the call of one run into its deployment's queue, once however often this is done.

        Raises DeploymentUnavailableError, BackPressureError, TransportError.
        """
        keys = deployment_keys(self._keys.namespace, record.app, record.deployment)
        call_id = self._call_id(record.name, due_s)
        call = Call(call_id, record.method, "", record.payload, record.serializer, record.flags)
        envelope = seal_call(call, self._ring.signer(Direction.CALL, keys.scope))
        pipe = await self._link.ready()
        answer = asyncio.get_running_loop().create_future()
        calls.put(pipe, keys, [(call_id, envelope)], record.limit, answer.set_result)
        reply = await answer
        if isinstance(reply, Exception):
            raise reply if isinstance(reply, TransportError) else refused(self._link.endpoint, reply)
        taken, waiting = reply
        if not taken:
            raise _refusal(record, waiting)

    def _call_id(self, name: str, due_s: float) -> bytes:
        """The id of one run's call: whoever fires it, and however often, it is the same call."""
        due_ms = round(due_s * 1000)
        scope = self._keys.scope("cron", name, str(due_ms))
        size = CALL_ID_BYTES - _MOMENT_BYTES
        return due_ms.to_bytes(_MOMENT_BYTES) + hashlib.blake2b(scope.encode(), digest_size=size).digest()

    def _known(self, name: str, raw: bytes | None) -> CronRecord | None:
        try:
            return None if raw is None else self._open(name, raw)
        except SignatureError:  # it is replaced
            return None

    async def _write(self, name: str, sealed: bytes | None) -> None:
        await self._state.write([Change(self._keys.crons, name, sealed)], f"{CRON_EVENT}{name}")

    def _open(self, name: str, raw: bytes) -> CronRecord:
        opened = open_control(raw, self._signer(name))
        try:
            record = CronRecord.model_validate_json(opened)
        except ValueError as error:
            raise SignatureError(f"This version of qserve cannot read it: {error}") from error
        if record.name != name:  # only where nothing is signed
            raise SignatureError(f"It is the recurring call {record.name!r} under another name.")
        return record

    def _signer(self, name: str) -> Signer:
        return self._ring.signer(Direction.CONTROL, self._keys.scope("cron", name))


def _refusal(record: CronRecord, waiting: int) -> QserveError:
    if waiting < 0:
        return DeploymentUnavailableError(
            f"Deployment {record.deployment!r} of application {record.app!r} is not deployed."
        )
    return BackPressureError(waiting, record.limit)
