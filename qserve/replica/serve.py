"""A replica's loop: take calls into free slots, have them run, store their replies.

Claim, execute and reply are apart.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from qserve.client.portal import get_response
from qserve.config import Settings
from qserve.context import CallContext
from qserve.errors import CallRejected, SignatureError, TransportError
from qserve.replica.executor import Executor, Job
from qserve.replica.load import Servable
from qserve.replica.outbox import ReplyBox
from qserve.spec import Assignment, DeploymentSpec
from qserve.store import calls as store
from qserve.store.calls import Entry, Finished
from qserve.store.connection import endpoint_of
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.store.reclaim import Reclaimer
from qserve.wire import codec
from qserve.wire.keys import deployment_keys, request_id
from qserve.wire.messages import Call, Reply, open_call, peek_call, seal_reply
from qserve.wire.signing import Direction, KeyRing

logger = logging.getLogger("qserve.replica")

BLOCK_MS = 5000
# How many calls may wait here for their inputs: each is held with all its arguments.
MOST_PARKED = 1000
# When all that was claimed had to be handed back, others may take it now; we must not turn it over and over.
_CROWDED_S = 0.02
_RETRY_S = 0.1


class Server:
    """Serves one deployment from this process: `run()` until drained, then `drain(timeout_s)`.

    on_retire  called once, with the reason, when it has answered as many calls as one replica may
    """

    def __init__(
        self,
        settings: Settings,
        assignment: Assignment,
        spec: DeploymentSpec,
        servable: Servable,
        *,
        on_retire: Callable[[str], None],
    ) -> None:
        self.replica_id = assignment.replica_id
        self.keys = deployment_keys(settings.namespace, assignment.app, assignment.deployment)
        self._slots = spec.config.max_ongoing_requests
        self._most_calls = spec.config.max_calls_per_replica
        self._paused = spec.paused
        self._on_retire = on_retire
        self._answered = 0
        self._is_retiring = False
        self._ring = KeyRing(settings.secrets)
        self._opens = self._ring.signer(Direction.CALL, self.keys.scope)
        self._seals = self._ring.signer(Direction.REPLY, self.keys.scope)
        endpoint = endpoint_of(settings)
        self._reader = Link(
            endpoint, f"qserve-{self.replica_id}-take", on_up=self._resume, silence_s=BLOCK_MS / 1000 + 5.0
        )
        self._link = Link(endpoint, f"qserve-{self.replica_id}", on_up=self._link_up)
        self._slot_free = asyncio.Event()
        self._executor = Executor(servable, self._slots, self._on_done)
        self._replies = ReplyBox(self._link, self.keys, self._slot_free.set)
        self._reclaimer = Reclaimer(self._link, self._ring, self.keys, spec.config.max_retries)
        self._running: dict[bytes, Job] = {}
        self._parked: dict[bytes, Entry] = {}
        self._ready: deque[Job] = deque()
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._parks: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Open both connections and the queue. Raises BrokerUnavailable."""
        await store.open_queue(await self._link.ready(), self.keys)
        await self._reader.ready()

    async def run(self) -> None:
        """Take calls until drained. Trouble with Redis is waited out."""
        while not self._draining:
            free = 0 if self._paused else self._free()
            if free <= 0:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            try:
                # COUNT is per stream, and there are two.
                pipe = await self._reader.ready()
                entries = await store.claim(pipe, self.keys, self.replica_id, max(1, free // 2), BLOCK_MS)
            except TransportError as error:
                if self._draining:  # which has closed the connection
                    return
                logger.info("Taking calls is interrupted: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            if entries and not self._accept(entries):
                await asyncio.sleep(_CROWDED_S)

    def configure(self, spec: DeploymentSpec) -> None:
        """Go by another configuration from now on; calls that run are not touched.

        A replica with fewer slots than before starts nothing until so many run. One that is paused takes no calls; what
        it was given and has not started goes back, uncharged.
        """
        config = spec.config
        if config.max_ongoing_requests != self._slots:
            self._slots = config.max_ongoing_requests
            self._executor.resize(self._slots)
        self._most_calls = config.max_calls_per_replica
        self._paused = spec.paused
        if self._paused:
            self._hand_back_waiting()
        self._start_ready()
        self._consider_retiring()
        self._slot_free.set()

    async def drain(self, timeout_s: float) -> None:
        """Take no more calls, finish those that run within `timeout_s`, hand the rest back uncharged.

        It ends with the last call, and at once when none runs: `graceful_shutdown_wait_loop_s`, after which Ray Serve
        looks for the first time, is accepted and means nothing here.
        """
        self._draining = True
        self._slot_free.set()
        self._reader.close_now()
        self._hand_back_waiting()
        self._spawn(self._hand_back_unseen())
        try:
            async with asyncio.timeout(timeout_s):
                while self._running or self._tasks or self._replies.owed:
                    self._slot_free.clear()
                    await self._slot_free.wait()
        except TimeoutError:
            logger.warning("%d calls did not finish in %g s and are handed back.", len(self._running), timeout_s)
        self._executor.close()
        await self._reclaimer.all_of(self.replica_id, "a drain", charge=False)
        for task in self._tasks:
            task.cancel()
        await self._link.close()

    # Taking

    def _free(self) -> int:
        return self._slots - len(self._running) - len(self._ready)

    def _accept(self, entries: list[Entry]) -> int:
        """Take entries in, hand back those that there is no room for. Returns how many were taken in."""
        surplus = [entry for entry in entries if not self._take_in(entry)]
        self._hand_back(surplus)
        return len(entries) - len(surplus)

    def _take_in(self, entry: Entry) -> bool:
        """Start, park or refuse one entry. False when we are paused, when there is no slot, or no room to park it."""
        if self._paused:
            return False
        try:
            call = open_call(entry.envelope, self._opens)
        except SignatureError as error:
            self._spawn(self._refuse(entry, error))
            return True
        if inputs := call.context.get("inputs"):
            if len(self._parked) >= MOST_PARKED:
                return False
            self._parked[entry.entry_id] = entry
            parking = self._spawn(self._park(entry, call, inputs))
            self._parks.add(parking)
            parking.add_done_callback(self._parks.discard)
            return True
        if self._free() <= 0:
            return False
        self._start(self._job(entry, call, {}))
        return True

    def _job(self, entry: Entry, call: Call, inputs: dict[str, Any]) -> Job:
        name = request_id(self.keys.app, self.keys.deployment, call.call_id)
        context = CallContext(call.context.get("request", name), name, entry.attempt)
        return Job(entry, call, context, inputs)

    def _start(self, job: Job) -> None:
        self._running[job.entry.entry_id] = job
        self._executor.start(job)

    async def _resume(self, pipe: Pipe) -> None:
        """On a new connection: entries that were given to us, but whose delivery we never saw, are ours to run."""
        for stream in (self.keys.front, self.keys.calls):
            # Asked before and after: what is answered in between stands in the reply, but is not ours to run again.
            held = self._held()
            entries = await store.all_pending(pipe, stream, self.replica_id)
            held |= self._held()
            self._accept([entry for entry in entries if entry.entry_id not in held])

    def _held(self) -> set[bytes]:
        """The entries that we know to be ours."""
        waiting = {job.entry.entry_id for job in self._ready}
        return waiting | self._running.keys() | self._parked.keys() | self._replies.entry_ids()

    # Inputs that are other calls' results

    async def _park(self, entry: Entry, call: Call, names: list[str]) -> None:
        """Wait for the inputs without a slot; then run, or answer with the error that an input has."""
        try:
            values = await asyncio.gather(*(_value_of(name) for name in names))
        except Exception as error:  # noqa: BLE001 (an input's error may be any, and answers this call)
            if self._parked.pop(entry.entry_id, None) is not None:
                self._answer(entry, call, codec.encode_error(call.call_id, error, call.serializer))
            return
        if self._parked.pop(entry.entry_id, None) is None:
            return
        job = self._job(entry, call, dict(zip(names, values, strict=True)))
        if self._slots > len(self._running):
            self._start(job)
        else:
            self._ready.append(job)

    # Ending calls

    def _on_done(self, job: Job, reply: Reply) -> None:
        if self._running.pop(job.entry.entry_id, None) is None:
            return  # handed back meanwhile
        self._answer(job.entry, job.call, reply)
        self._answered += 1
        if self._answered == self._most_calls:
            self._consider_retiring()
        if self._ready:
            self._start_ready()
        self._slot_free.set()

    def _start_ready(self) -> None:
        while self._ready and not self._draining and len(self._running) < self._slots:
            self._start(self._ready.popleft())

    def _consider_retiring(self) -> None:
        if self._most_calls is not None and self._answered >= self._most_calls and not self._is_retiring:
            self._is_retiring = True
            self._on_retire(f"it has answered {self._answered} calls (max_calls_per_replica={self._most_calls})")

    def _answer(self, entry: Entry, call: Call, reply: Reply) -> None:
        self._replies.add(Finished(entry, call.call_id, call.inbox, seal_reply(reply, self._seals)))

    async def _refuse(self, entry: Entry, cause: SignatureError) -> None:
        """Quarantine what cannot be trusted; tell the caller if the entry is the one that was put for its call."""
        logger.warning("Entry %s of %s was quarantined: %s", entry.entry_id.decode(), entry.stream, cause)
        answer = None
        if (peeked := peek_call(entry.envelope)) is not None:
            call_id, inbox = peeked
            error = CallRejected(f"A replica of {self.keys.deployment!r} refused the call unopened. {cause}")
            answer = (call_id, inbox, seal_reply(codec.encode_error(call_id, error, 0), self._seals))
        await store.quarantine(self._link, self.keys, entry, str(cause), answer)

    def _hand_back_waiting(self) -> None:
        """What has not been started goes to others."""
        self._hand_back([*(job.entry for job in self._ready), *self._parked.values()])
        self._parked.clear()
        self._ready.clear()
        for waiting in self._parks:
            waiting.cancel()

    def _hand_back(self, entries: list[Entry]) -> None:
        for stream in (self.keys.front, self.keys.calls):
            if chosen := [entry for entry in entries if entry.stream == stream]:
                self._spawn(self._release(stream, chosen))

    async def _release(self, stream: str, entries: Sequence[Entry]) -> None:
        """Hand entries of one stream back, uncharged. Trouble with Redis is waited out: nobody else looks for them."""
        for start in range(0, len(entries), store.MOST_PER_SWEEP):
            page = entries[start : start + store.MOST_PER_SWEEP]
            while True:
                try:
                    await self._reclaimer.release(stream, self.replica_id, page, "a drain", charge=False)
                    break
                except TransportError as error:
                    logger.info("Handing back %d calls is tried again: %s", len(page), error)
                    await asyncio.sleep(_RETRY_S)

    async def _hand_back_unseen(self) -> None:
        """While draining: entries that were given to the reading connection as it closed. Others may run them now."""
        for _ in range(2):  # when it answers for the second time, the server has seen the close
            await self._link.call("PING")
        for stream in (self.keys.front, self.keys.calls):
            entries = await store.all_pending(await self._link.ready(), stream, self.replica_id)
            await self._release(stream, [entry for entry in entries if entry.entry_id not in self._held()])

    def _link_up(self, _pipe: Pipe) -> None:
        asyncio.get_running_loop().call_soon(self._replies.flush)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)
        return task

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slot_free.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("A step was interrupted; what it held is handed back when the replica ends: %s", error)


async def _value_of(name: str) -> Any:
    """The result of another call; one that is still on its way to the store is waited for."""
    return await get_response(name)
