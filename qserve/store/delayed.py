"""Calls that are not due yet: kept apart from the queue, moved into it when their time has come, each once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any

from qserve.config import RESULT_TTL_S
from qserve.errors import BrokerRefused, CallRejected, DeploymentUnavailableError, SignatureError, TransportError
from qserve.store import scripts
from qserve.store.calls import INLINE_REPLY_BYTES
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.store.state import ClusterState
from qserve.wire import codec
from qserve.wire.keys import GROUP, ClusterKeys, DeploymentKeys, deployment_keys
from qserve.wire.messages import open_call, peek_call, seal_reply
from qserve.wire.signing import Direction, KeyRing

logger = logging.getLogger("qserve.store")

# How many calls one script may move or answer, and after how many bytes of envelopes it stops: it blocks the server.
MOST_AT_ONCE = 100
_MOST_BYTES = 8 * 1024 * 1024
# As long may a releaser rely on its own clock: the server's, which counts, may be set meanwhile.
_TRUST_CLOCK_S = 5.0
_TRY_AGAIN_S = 1.0
# What a closer answers in one turn.
_MOST_ANSWERS = 1000
_HINT = b"delayed "
_TTL_MS = int(RESULT_TTL_S * 1000)


@dataclass(frozen=True, slots=True)
class Due:
    """When a call is to run. `after` is from when Redis has taken it, by Redis's clock; without, of the epoch."""

    ms: int
    after: bool

    def is_past(self, now_ms: float) -> bool:
        """Whether it is a moment that lies before `now_ms` of the epoch."""
        return not self.after and self.ms <= now_ms

    def to_text(self) -> str:
        """As delay.lua reads it."""
        return f"+{self.ms}" if self.after else str(self.ms)


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a deployment's delayed calls shows. Times are the server's, in milliseconds.

    due      ids of calls whose time has come, the earliest first; at most MOST_AT_ONCE
    next_ms  when to look again: at once if any is due, for there may be more; inf when nothing is delayed
    """

    now_ms: float
    due: tuple[bytes, ...]
    next_ms: float


def put(
    pipe: Pipe, keys: DeploymentKeys, calls: Sequence[tuple[bytes, bytes, Due]], on_reply: Callable[[Any], None]
) -> None:
    """Keep (call id, envelope, when) until they are due; at most calls.MOST_PER_SCRIPT, no id twice.

    `on_reply` gets [taken, 0], or the exception. The first `taken` calls are kept now or were before; -1 in place of 0
    says that the others were refused, because the deployment is gone.
    """
    names = [keys.delayed, keys.envelopes, keys.calls, keys.asleep, *(keys.record(call_id) for call_id, _, _ in calls)]
    arguments: list[Any] = [ClusterKeys(keys.namespace).events, f"{_HINT.decode()}{keys.app}.{keys.deployment} "]
    for call_id, envelope, due in calls:
        arguments += (call_id, due.to_text(), envelope)
    pipe.run(scripts.DELAY, names, arguments, on_reply)


async def look(link: Link, keys: DeploymentKeys) -> Look:
    """Which calls are due now, by the server's clock."""
    pipe = await link.ready()
    (seconds, micros), flat = await asyncio.gather(
        pipe.call("TIME"), pipe.call("ZRANGE", keys.delayed, 0, MOST_AT_ONCE - 1, "WITHSCORES")
    )
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    times = [(call_id, float(at_ms)) for call_id, at_ms in zip(flat[::2], flat[1::2], strict=True)]
    due = tuple(call_id for call_id, at_ms in times if at_ms <= now_ms)
    return Look(now_ms, due, min((at_ms for _, at_ms in times), default=inf))


async def release(link: Link, keys: DeploymentKeys, due: Sequence[bytes]) -> int:
    """Move calls into their queue, at most MOST_AT_ONCE; large ones are left for the next time.

    Returns how many were moved: others may have moved the rest. -1 when the deployment is gone.
    """
    names = [keys.delayed, keys.envelopes, keys.calls, keys.front, keys.asleep, *map(keys.record, due)]
    moved: int = await link.script(scripts.RELEASE, names, [GROUP, _MOST_BYTES, *due])
    return moved


async def call_off(link: Link, ring: KeyRing, keys: DeploymentKeys, error: Exception) -> int:
    """Answer the calls that are not due yet with this error, 1,000 or so at a time. Returns how many."""
    answered = 0
    while answered < _MOST_ANSWERS and (ids := await link.call("ZRANGE", keys.delayed, 0, MOST_AT_ONCE - 1)):
        for call_id in ids:
            envelope = await link.call("HGET", keys.envelopes, call_id)
            caller, reply = _answer(ring, keys, call_id, envelope or b"", error)
            names = [keys.delayed, keys.envelopes, keys.record(call_id)]
            arguments = [_TTL_MS, INLINE_REPLY_BYTES, call_id, caller, reply]
            answered += await link.script(scripts.CALL_OFF, names, arguments)
    return answered


def _answer(
    ring: KeyRing, keys: DeploymentKeys, call_id: bytes, envelope: bytes, error: Exception
) -> tuple[str, bytes]:
    """The inbox and the reply for a call that will not run."""
    serializer = 0
    try:
        call = open_call(envelope, ring.signer(Direction.CALL, keys.scope))
        caller, serializer = call.inbox, call.serializer
    except SignatureError as cause:
        error = CallRejected(f"The call to {keys.deployment!r} was refused unopened. {cause}")
        caller = (peek_call(envelope) or (b"", ""))[1]
    reply = codec.encode_error(call_id, error, serializer)
    return caller, seal_reply(reply, ring.signer(Direction.REPLY, keys.scope))


class Releaser:
    """Moves delayed calls into their queues when they are due. Any number may run: each call is moved once.

    It polls nothing: while no call is delayed it sends no command. Whoever runs it passes on what the events channel
    tells, and says when the channel was (re)connected.
    """

    def __init__(self, state: ClusterState, ring: KeyRing) -> None:
        self._state = state
        self._ring = ring
        self._woken = asyncio.Event()
        self._looks_everywhere = True
        self._due_ms: dict[tuple[str, str], float] = {}
        self._ahead_ms = 0.0  # the server's clock, of ours

    def hear(self, event: bytes) -> None:
        """Something was told on the events channel."""
        if event.startswith(_HINT):
            app, _, deployment = event.removeprefix(_HINT).rpartition(b" ")[0].decode(errors="replace").partition(".")
            self._due_ms[app, deployment] = 0.0
            self._woken.set()

    def look_again(self) -> None:
        """Events may have been missed: ask for every deployment."""
        self._looks_everywhere = True
        self._woken.set()

    async def run(self) -> None:
        """Release calls until cancelled. May be run again."""
        self.look_again()
        while True:
            self._woken.clear()
            try:
                rest_s = await self._turn()
            except TransportError as error:
                logger.warning("Delayed calls that are due have to wait: %s", error)
                self._looks_everywhere = True
                rest_s = _TRY_AGAIN_S
            await self._rest(rest_s)

    async def _rest(self, rest_s: float) -> None:
        try:
            async with asyncio.timeout(None if rest_s == inf else rest_s):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _turn(self) -> float:
        """Release what is due. Returns for how many seconds there is nothing to do."""
        if self._looks_everywhere:
            self._looks_everywhere = False
            wanted = (await self._state.wanted()).values()
            self._due_ms |= {(app.name, spec.name): 0.0 for app in wanted for spec in app.deployments}
        elif self._due_ms:  # when nothing is due by our clock, it is still time to ask the server's
            self._due_ms[min(self._due_ms, key=self._due_ms.__getitem__)] = 0.0
        while due := [name for name, due_ms in self._due_ms.items() if due_ms <= self._now_ms()]:
            for name in due:
                await self._serve(name)
        wait_s = (min(self._due_ms.values(), default=inf) - self._now_ms()) / 1000
        return wait_s if wait_s == inf else min(max(wait_s, 0.0), _TRUST_CLOCK_S)

    async def _serve(self, name: tuple[str, str]) -> None:
        """One look at one deployment: no flood of calls to it keeps those of others."""
        keys = deployment_keys(self._state.keys.namespace, *name)
        self._due_ms[name] = inf
        try:
            seen = await look(self._state.link, keys)
            self._ahead_ms = seen.now_ms - monotonic() * 1000
            self._due_ms[name] = min(self._due_ms[name], seen.next_ms)  # it may have been told of meanwhile
            if seen.due and await release(self._state.link, keys, seen.due) < 0:
                await call_off(self._state.link, self._ring, keys, _gone(keys))
        except BrokerRefused as error:
            logger.warning("Delayed calls to %s.%s have to wait: %s", *name, error)
            self._due_ms[name] = self._now_ms() + _TRUST_CLOCK_S * 1000
        if self._due_ms[name] == inf:
            del self._due_ms[name]

    def _now_ms(self) -> float:
        return monotonic() * 1000 + self._ahead_ms


def _gone(keys: DeploymentKeys) -> DeploymentUnavailableError:
    return DeploymentUnavailableError(
        f"Deployment {keys.deployment!r} of application {keys.app!r} was deleted before the call was due."
    )
