"""The worker's loop: keep the children equal to the assignments, their leases alive, their calls safe when they die."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from qserve.config import HEARTBEAT_S, KEEP_LINES, LEASE_S, Settings
from qserve.errors import QserveError, SignatureError, TransportError
from qserve.node.accounting import Books
from qserve.node.child import Child
from qserve.node.exits import MemoryKills
from qserve.node.output import BoundedWriter, Output
from qserve.node.resources import gpu_ids, rss_bytes
from qserve.spec import Assignment, DeploymentSpec, ExitCause, NodeRecord, ReplicaRecord, ReplicaState
from qserve.store import replies
from qserve.store.connection import endpoint_of
from qserve.store.link import Link
from qserve.store.pipe import Pipe
from qserve.store.reclaim import Reclaimer
from qserve.store.state import ClusterState
from qserve.wire.keys import deployment_keys
from qserve.wire.signing import KeyRing

logger = logging.getLogger("qserve.worker")


class Agent:
    """One worker. `run()` until drained; `drain()` stops all replicas and takes the node off the cluster.

    log_lines  about how many lines of each deployment are kept in Redis
    own        deployments that it knows by itself: their replicas keep these versions, whatever is wanted by now
    """

    def __init__(
        self,
        settings: Settings,
        record: NodeRecord,
        *,
        log_lines: int = KEEP_LINES,
        own: Mapping[str, DeploymentSpec] = MappingProxyType({}),
    ) -> None:
        self.record = record
        self._settings = settings
        self._ring = KeyRing(settings.secrets)
        endpoint = endpoint_of(settings)
        self._link = Link(endpoint, f"qserve-worker-{record.node_id}")
        self.state = ClusterState(self._link, settings.namespace, self._ring)
        self._events = Link(
            endpoint, f"qserve-worker-{record.node_id}-events", on_up=self._listen, on_message=self._on_event
        )
        self._own = own
        self._output = Output(self.state, record.host, keep=log_lines, stdout=BoundedWriter(1))
        self._books = Books(record.resources, gpu_ids(int(record.resources.get("num_gpus", 0))))
        self._kills = MemoryKills()
        self._children: dict[str, Child] = {}
        self._ended: set[str] = set()  # replicas whose assignment the leader has yet to take back
        self._unshown: set[str] = set()  # replicas whose last state did not reach Redis
        self._woken = asyncio.Event()
        self.has_joined = False
        self._draining = False
        self._hurries = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Host what is assigned, until drained. Raises BrokerUnavailable when Redis was never there, SignatureError."""
        await self._events.ready()
        await self.state.check_seal()
        await self.state.announce(self.record)
        self.has_joined = True
        namespace = self._settings.namespace
        logger.info("%s has joined namespace %r at %s.", self.record.node_id, namespace, self._link.endpoint)
        heartbeat = asyncio.create_task(self._heartbeat(), name="heartbeat")
        try:
            while not self._draining:
                self._woken.clear()
                try:
                    await self._turn()
                except TransportError as error:
                    logger.warning("This turn is skipped: %s", error)
                    await asyncio.sleep(HEARTBEAT_S / 4)
                    self._woken.set()
                await self._woken.wait()
        finally:
            heartbeat.cancel()

    async def drain(self, timeout_s: float | None = None) -> None:
        """Drain all replicas, each within its own grace or `timeout_s`; then leave the cluster. Safe to call twice."""
        if self._draining:
            return
        self._draining = True
        self._woken.set()
        leaving = self.record.model_copy(update={"draining": True})
        try:
            await self.state.announce(leaving)
        except TransportError as error:
            logger.warning("Draining without telling the controllers: %s", error)
        children = list(self._children.values())
        for child in children:
            self._drain_child(child, timeout_s)
        keeping = asyncio.create_task(self._heartbeat())
        await asyncio.gather(*(child.ended() for child in children))
        keeping.cancel()
        try:
            await self.state.withdraw(self.record.node_id)
        except TransportError as error:
            logger.warning("The lease of this node is left to lapse: %s", error)
        await self._output.close()
        await self._events.close()
        await self._link.close()

    def kill_children(self) -> None:
        """End all replicas now; for a second signal. Their calls are handed back, if Redis is there."""
        self._hurries = True
        for child in self._children.values():
            child.kill()

    async def _heartbeat(self) -> None:
        """Renew the node's lease and its replicas', from this process: user code that blocks its own loses nothing."""
        while True:
            names = [self.state.keys.node_lease(self.record.node_id)]
            names += [self._lease(child.assignment) for child in self._children.values() if child.is_alive]
            try:
                if not await self.state.renew(names) and not self._draining:
                    # We were paused or cut off: the leader has given our replicas away and forgotten this node.
                    logger.warning("The lease of this node had lapsed: joining again.")
                    await self.state.announce(self.record)
                    self._woken.set()
                await self._show_again()
                self._weigh_children()
                self._woken.set()  # an event may be lost: what is assigned is looked at with each heartbeat as well
            except TransportError as error:
                logger.warning("The leases were not renewed: %s", error)
            await asyncio.sleep(HEARTBEAT_S)

    async def _turn(self) -> None:
        """Compare assignments with children: start what is missing, reconfigure what is, drain what is not wanted."""
        wanted = await self.state.assignments(self.record.node_id)
        self._ended &= wanted.keys()
        for replica_id, child in list(self._children.items()):
            if replica_id not in wanted:
                self._drain_child(child)
        for replica_id, assignment in wanted.items():
            if self._draining:  # it may have begun while the replica before this one was started
                return
            hosted = self._children.get(replica_id)
            if hosted is not None:
                await self._reconfigure(hosted, assignment)
            elif replica_id not in self._ended:
                await self._start(assignment)

    async def _start(self, assignment: Assignment) -> None:
        try:
            spec = await self._spec(assignment)
        except SignatureError as error:
            text = f"The worker on {self.record.host} distrusts the application. {error}"
            await self._show_failure(assignment, ExitCause.START, text)
            return
        except TransportError:
            raise
        except QserveError as error:
            await self._show_failure(assignment, ExitCause.START, str(error))
            return
        if spec is None:
            return  # changed since: the leader will take this assignment back
        needs = spec.config.resources
        if missing := self._books.why_not(needs):
            text = f"The worker {self.record.node_id} has no room for it: {missing}."
            await self._show_failure(assignment, ExitCause.REFUSED, text)
            return
        await self.state.renew([self._lease(assignment)])
        if not self._draining:
            await self._host(assignment.model_copy(update={"resources": needs}), spec)

    async def _spec(self, assignment: Assignment) -> DeploymentSpec | None:
        """The deployment as the assignment means it; None when it has changed. Raises QserveError."""
        own = self._own.get(assignment.deployment)
        if own is not None and (own.app, own.version) == (assignment.app, assignment.version):
            return own
        spec = (await self.state.app(assignment.app)).deployment(assignment.deployment)
        return spec if spec is not None and spec.version == assignment.version else None

    async def _host(self, assignment: Assignment, spec: DeploymentSpec) -> None:
        replica_id = assignment.replica_id
        gpus = self._books.take(replica_id, assignment.resources)
        child = Child(
            assignment,
            spec,
            on_change=self._changed,
            on_exit=self._after,
            on_line=self._output.line,
            kills=self._kills,
            gpus=gpus if self._books.gpus else None,
        )
        self._children[replica_id] = child  # after all that may fail: what stands here counts as started
        try:
            await child.start(self._settings)
        except (OSError, ValueError) as error:  # also of an env_vars that no process can have
            del self._children[replica_id]
            self._books.release(replica_id)
            text = f"The replica process could not be started: {error}"
            await self._show_failure(assignment, ExitCause.START, text)
            return
        self._output.tell(_record(child))
        await self._show(child)

    async def _reconfigure(self, child: Child, assignment: Assignment) -> None:
        """Bring a running replica to the configuration that its assignment names; one at a time."""
        wanted = assignment.config_version
        if child.state is not ReplicaState.RUNNING or wanted in ("", child.spec.config_version):
            return
        if _runs(assignment) != _runs(child.assignment):  # nobody of ours writes that
            logger.warning("%s keeps its configuration: its assignment names something else.", child.label)
            return
        try:
            spec = await self._spec(assignment)
        except TransportError as error:
            if not isinstance(error, SignatureError):
                raise
            logger.warning("%s keeps its configuration: %s", child.label, error)
            return
        except QserveError:  # deleted since: the leader will take this assignment back
            return
        if spec is not None and spec.config_version == wanted and child.state is ReplicaState.RUNNING:
            child.reconfigure(assignment.model_copy(update={"resources": child.assignment.resources}), spec)

    def _drain_child(self, child: Child, timeout_s: float | None = None) -> None:
        if child.state is not ReplicaState.STOPPING:
            child.drain(child.spec.config.graceful_shutdown_timeout_s if timeout_s is None else timeout_s)
            self._output.tell(_record(child))
            self._spawn(self._show(child))

    def _weigh_children(self) -> None:
        """Retire replicas whose memory has grown beyond what their deployment allows."""
        for child in self._children.values():
            limit = child.spec.config.max_replica_rss
            if limit is None or not child.serves or child.retiring:
                continue
            held = rss_bytes(child.pid)
            if held > limit:
                child.retire(f"it holds {held} bytes of memory (max_replica_rss={limit})")

    def _changed(self, child: Child) -> None:
        self._output.tell(_record(child))
        self._spawn(self._show(child))
        self._woken.set()  # its assignment may have changed while it could not follow

    async def _after(self, child: Child) -> None:
        """A child has ended: give its calls to others at once, and say what became of it."""
        self._ended.add(child.assignment.replica_id)
        self._books.release(child.assignment.replica_id)
        self._output.tell(_record(child), has_ended=True)
        keys = self._keys(child.assignment)
        reclaimer = Reclaimer(self._link, self._ring, keys, child.spec.config.max_retries)
        lapses_at = time.monotonic() + LEASE_S
        while True:
            try:
                await self._close_books(child, reclaimer)
                break
            except TransportError as error:
                if self._draining and (self._hurries or time.monotonic() >= lapses_at):
                    # Nobody could end a worker otherwise while Redis is away; and without a lease all may take them.
                    logger.warning("The calls of %s are left to others: %s", child.label, error)
                    break
                logger.warning("The calls of %s are handed back as soon as Redis is there: %s", child.label, error)
                await asyncio.sleep(HEARTBEAT_S / 4)
        del self._children[child.assignment.replica_id]
        self._unshown.discard(child.assignment.replica_id)
        self._woken.set()

    async def _close_books(self, child: Child, reclaimer: Reclaimer) -> None:
        cause = child.message.split("\n")[0].partition(" Its last output:")[0].rstrip(".")
        held = await reclaimer.all_of(child.assignment.replica_id, cause, charge=not child.was_asked)
        if child.was_asked:
            await self.state.forget(child.assignment.replica_id)
            return
        logger.warning("%s %s, %d calls were handed back. %s", child.label, child.state, held, child.message)
        await self.state.record(_record(child))

    async def _show(self, child: Child) -> None:
        """Show what it is doing now. Once it has ended, `_after` has the last word: this must not come after it."""
        try:
            await self._link.ready()
            if not child.has_ended:
                await self.state.record(_record(child))
        except TransportError as error:
            self._unshown.add(child.assignment.replica_id)
            logger.warning("The state of %s is shown with a later heartbeat: %s", child.label, error)

    async def _show_again(self) -> None:
        """A state that was lost on its way would never be seen: no deployment completes without its RUNNING."""
        for replica_id in list(self._unshown):
            self._unshown.discard(replica_id)
            child = self._children.get(replica_id)
            if child is not None and child.is_alive:  # else its end is shown by `_after`, until it is
                await self._show(child)

    async def _show_failure(self, assignment: Assignment, cause: ExitCause, message: str) -> None:
        """Say that a replica did not even become a process. One that could not be told is tried again."""
        state = ReplicaState.FAILED
        record = ReplicaRecord(**assignment.model_dump(), state=state, message=message, cause=cause)
        await self.state.record(record)
        self._output.tell(record)
        self._ended.add(assignment.replica_id)

    def _keys(self, assignment: Assignment) -> Any:
        return deployment_keys(self._settings.namespace, assignment.app, assignment.deployment)

    def _lease(self, assignment: Assignment) -> str:
        name: str = self._keys(assignment).lease(assignment.replica_id)
        return name

    async def _listen(self, pipe: Pipe) -> None:
        await replies.subscribe(pipe, self.state.keys.events)
        self._woken.set()

    def _on_event(self, event: bytes) -> None:
        if event == f"assign {self.record.node_id}".encode() or event.startswith(b"delete "):
            self._woken.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _runs(assignment: Assignment) -> tuple[str, str, str]:
    """What a process is from its start to its end."""
    return assignment.app, assignment.deployment, assignment.version


def _record(child: Child) -> ReplicaRecord:
    return ReplicaRecord(
        **child.assignment.model_dump() | {"config_version": child.spec.config_version},
        state=child.state,
        pid=child.pid,
        message=child.message,
        gpus=child.gpus or (),
        retiring=child.retiring,
        cause=child.cause,
        started_at_s=child.started_at_s,
    )
