"""`qserve scheduler`: makes recurring calls, as an arq worker, and releases delayed ones. Any number may run.

arq keeps the times: a deferred job for the next run of each recurring call, under an id that all schedulers agree on. A
job is a few names; what is called stands in the sealed record. The only module that imports arq.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from qserve.config import Settings
from qserve.doors import keep_running, run_door
from qserve.errors import MissingExtra, RefusedError, SignatureError, TransportError
from qserve.scheduling import crontab
from qserve.store import replies
from qserve.store.connection import Endpoint, endpoint_of
from qserve.store.crons import CRON_EVENT, CronRecord, Crons
from qserve.store.delayed import Releaser
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.store.state import ClusterState
from qserve.wire.keys import ClusterKeys
from qserve.wire.messages import open_control, seal_control
from qserve.wire.signing import Direction, KeyRing

try:
    from arq import Retry, Worker, create_pool, func
    from arq.connections import ArqRedis, RedisError, RedisSettings
    from arq.constants import job_key_prefix
except ImportError as error:
    raise MissingExtra(
        "`qserve scheduler` needs arq: pip install 'qserve[cli,scheduler]'. arq needs redis-py before version 6."
    ) from error

logger = logging.getLogger("qserve.scheduler")

_FIRE = "fire"
_AGAIN_S = 2.0
_FIRE_TIMEOUT_S = 2.0
# arq's own limit. A scheduler that is killed while it fires holds the job for 10 s longer; then another one takes it.
_JOB_TIMEOUT_S = 3
_MOST_TRIES = 10_000
# While arq remembers a job that is done, it is not queued again. After that the id of its call says that it was made.
_REMEMBER_S = 90


def run_scheduler(settings: Settings) -> int:
    """Make recurring and delayed calls until TERM or INT. Returns the exit code."""
    return run_door(_main(settings), settings)


async def _main(settings: Settings) -> int:
    scheduler = Scheduler(settings, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}")
    return await keep_running(scheduler.run(), scheduler.drain, heartbeat_file=settings.heartbeat_file)


class Scheduler:
    """One scheduler process."""

    def __init__(self, settings: Settings, scheduler_id: str) -> None:
        crontab.next_after("* * * * *", "UTC", 0.0)  # without cronsim it says so now, not at the first run
        endpoint = endpoint_of(settings)
        self._redis = redis_settings(endpoint)
        self._ring = KeyRing(settings.secrets)
        self._link = Link(endpoint, f"qserve-scheduler-{scheduler_id}")
        self._state = ClusterState(self._link, settings.namespace, self._ring)
        self._crons = Crons(self._state, self._ring)
        self._jobs = Jobs(self._state.keys, self._ring)
        self._releaser = Releaser(self._state, self._ring)
        self._events = Link(
            endpoint, f"qserve-scheduler-{scheduler_id}-events", on_up=self._listen, on_message=self._on_event
        )
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    async def run(self) -> None:
        """Make calls until drained. Raises BrokerUnavailable when Redis was never there."""
        await self._events.ready()
        await self._state.check_seal()
        self._ended.clear()
        releasing = asyncio.create_task(self._releaser.run(), name="release")
        try:
            while not self._stopping.is_set():
                try:
                    await self._work()
                except (RedisError, TransportError, OSError, UnicodeDecodeError) as error:  # the last: see Jobs.stale
                    logger.warning("Recurring calls have to wait: %s", error)
                    await self._pause()
        finally:
            releasing.cancel()
            self._ended.set()

    async def drain(self) -> None:
        """Stop; what is due from now on is left to others. Safe to call twice."""
        self._stopping.set()
        await self._ended.wait()
        await self._events.close()
        await self._link.close()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_AGAIN_S):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _work(self) -> None:
        """Be an arq worker until drained, or until Redis is lost."""
        pool = await create_pool(
            self._redis,
            job_serializer=self._jobs.to_bytes,
            job_deserializer=self._jobs.from_bytes,
            default_queue_name=self._jobs.queue,
        )
        worker = _Worker(
            [func(self._fire, name=_FIRE)],
            on_failed=self._changed.set,
            queue_name=self._jobs.queue,
            redis_pool=pool,
            job_serializer=self._jobs.to_bytes,
            job_deserializer=self._jobs.from_bytes,
            job_timeout=_JOB_TIMEOUT_S,
            keep_result=_REMEMBER_S,
            max_tries=_MOST_TRIES,
            handle_signals=False,
            log_results=False,
        )
        working: list[asyncio.Task[Any]] = []
        try:
            self._changed.clear()
            await self._plan(pool)  # before arq looks at its queue: what stands there may end it
            working = [
                asyncio.create_task(worker.async_run(), name="arq"),
                asyncio.create_task(self._keep_planned(pool), name="plan"),
                asyncio.create_task(self._stopping.wait(), name="stop"),
            ]
            await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in working:
                task.cancel()
            ended = await _outcomes(*working)
            await _outcomes(worker.close())  # without Redis it cannot say good-bye
            await _outcomes(pool.aclose(close_connection_pool=True))
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    # Planning

    async def _keep_planned(self, pool: ArqRedis) -> None:
        """Plan again whenever a recurring call is registered or removed, or a job was lost."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._plan(pool)

    async def _plan(self, pool: ArqRedis) -> None:
        """Have the next run of every recurring call in arq's queue, and nothing else."""
        records = await self._crons.all()
        now_s = await self._now_s()
        for record in records.values():
            turn = _turn(record, record.since_s, now_s)
            for due_s in (turn.due_s, turn.next_s) if turn else ():
                await self._queue(pool, record, due_s)
        for job_id in self._jobs.stale(await pool.zrange(self._jobs.queue, 0, -1), records.values()):
            await pool.zrem(self._jobs.queue, job_id)
            await pool.delete(job_key_prefix.encode() + job_id)

    async def _queue(self, pool: ArqRedis, record: CronRecord, due_s: float | None) -> None:
        """Queue one run for its time, unless some scheduler has done so."""
        if due_s is not None:
            job_id, when = self._jobs.id_of(record, due_s), datetime.fromtimestamp(due_s, UTC)
            await pool.enqueue_job(_FIRE, record.name, record.revision, due_s, _job_id=job_id, _defer_until=when)

    # Firing

    async def _fire(self, context: dict[str, Any], name: str, revision: str, due_s: float) -> str:
        """One run is due: what arq calls. Refused, or without Redis, it tries again until it is too late."""
        try:
            async with asyncio.timeout(_FIRE_TIMEOUT_S):
                return await self._make(context["redis"], name, revision, due_s)
        except SignatureError as error:
            logger.warning("The recurring call %r does not run: %s", name, error)
            return "not trusted"
        except (RefusedError, TransportError, RedisError, TimeoutError) as error:
            if context["job_try"] == 1:
                logger.warning("The run of %r due at %s has to wait: %s", name, _clock(due_s), error)
            raise Retry(defer=_AGAIN_S) from error

    async def _make(self, pool: ArqRedis, name: str, revision: str, due_s: float) -> str:
        """Queue the next run, then make this one, or leave it out when it is too late. Returns what became of it."""
        record = await self._crons.get(name)
        if record is None or record.revision != revision:
            return "removed or replaced"
        # A host whose clock is ahead of the server's is early: its run is the same one.
        turn = _turn(record, due_s - 0.001, max(await self._now_s(), due_s))
        if turn is None:
            return "unreadable"
        await self._queue(pool, record, turn.next_s)
        if turn.due_s is None:
            logger.warning("A run of %r was due at %s, and is left out: it is too late.", name, _clock(due_s))
            return "too late"
        await self._crons.fire(record, turn.due_s)
        logger.info("Made the run of %r due at %s.", name, _clock(turn.due_s))
        return "made"

    async def _now_s(self) -> float:
        """The server's time: the hosts of several schedulers need not agree."""
        seconds, micros = await self._link.call("TIME")
        return int(seconds) + int(micros) / 1_000_000

    # Events

    async def _listen(self, pipe: Pipe) -> None:
        await replies.subscribe(pipe, self._state.keys.events)
        self._releaser.look_again()
        self._changed.set()

    def _on_event(self, event: bytes) -> None:
        self._releaser.hear(event)
        if event.startswith(CRON_EVENT.encode()):
            self._changed.set()


class _Worker(Worker):  # type: ignore[misc]  # (untyped, where types are checked: arq is not there)
    """arq's worker, which also tells of a job that ended without being run: it cannot have queued the next one.

    Its blob was forged, or has expired.
    """

    def __init__(self, *args: Any, on_failed: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_failed = on_failed

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        """What arq does with such a job."""
        await super().finish_failed_job(job_id, result_data)
        self._on_failed()


class Jobs:
    """What stands in arq's keys: sealed JSON with names in it, never a pickle."""

    def __init__(self, keys: ClusterKeys, ring: KeyRing) -> None:
        self.queue = keys.scheduler
        self._signer = ring.signer(Direction.CONTROL, keys.scope("scheduler"))

    def to_bytes(self, job: dict[str, Any]) -> bytes:
        """A job, or its result, for arq's keys."""
        return seal_control(json.dumps(job, default=str).encode(), self._signer)

    def from_bytes(self, sealed: bytes) -> dict[str, Any]:
        """A job that a scheduler of this cluster made. Raises SignatureError, ValueError for anything else."""
        job: dict[str, Any] = json.loads(open_control(sealed, self._signer))
        return job

    def id_of(self, record: CronRecord, due_s: float) -> str:
        """The id of one run's job, the same in all schedulers."""
        return f"{self.queue}:{record.name}:{record.revision}:{round(due_s * 1000)}"

    def stale(self, job_ids: Iterable[bytes], records: Iterable[CronRecord]) -> list[bytes]:
        """Those of the jobs whose recurring call was removed or replaced, and what is no job of ours.

        Anybody who reaches Redis may have written a name, and arq ends with an error on one that is no UTF-8.
        """
        current = {f"{self.queue}:{record.name}:{record.revision}".encode() for record in records}
        named = ((job_id, *job_id.rpartition(b":")) for job_id in job_ids)
        return [job_id for job_id, run, _, due in named if run not in current or not due.isdigit()]


def redis_settings(endpoint: Endpoint) -> RedisSettings:
    """arq's name for the cluster's server."""
    shared: dict[str, Any] = {
        "database": endpoint.db,
        "username": endpoint.username or None,
        "password": endpoint.password or None,
        "conn_timeout": 5,
        "conn_retries": 0,  # we try again ourselves, and can be told to stop
    }
    if endpoint.sentinels:
        sentinels = list(endpoint.sentinels)
        return RedisSettings(host=sentinels, sentinel=True, sentinel_master=endpoint.service, **shared)
    tls = endpoint.tls_options
    return RedisSettings(
        host=endpoint.host,
        port=endpoint.port,
        unix_socket_path=endpoint.path or None,
        ssl=endpoint.tls,
        ssl_ca_certs=tls.get("ssl_ca_certs"),
        ssl_certfile=tls.get("ssl_certfile"),
        ssl_keyfile=tls.get("ssl_keyfile"),
        ssl_check_hostname=endpoint.tls,
        **shared,
    )


def _turn(record: CronRecord, since_s: float, now_s: float) -> crontab.Turn | None:
    """What to do for a recurring call now; None when it cannot be read here."""
    try:
        return crontab.turn(
            record.expression, record.timezone, since_s=since_s, now_s=now_s, grace_s=record.misfire_grace_s
        )
    except Exception as error:  # noqa: BLE001 (one record that nobody can read must not stop the others)
        logger.warning("The recurring call %r does not run: %s", record.name, error)
        return None


async def _outcomes(*work: Awaitable[Any]) -> list[Any]:
    """The results of all, or what they raised."""
    return await asyncio.gather(*work, return_exceptions=True)


def _clock(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).isoformat()
