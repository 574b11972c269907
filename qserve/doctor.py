"""Looks a cluster over and says what keeps it from working, with the mend of each. Reads only."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from qserve.config import Settings
from qserve.errors import BrokerBinaryMissing, BrokerRefused, SettingsError, SignatureError, TransportError
from qserve.spec import DeploymentStatusInfo, NodeRecord, ReplicaState
from qserve.store import calls
from qserve.store.connection import Endpoint, parse_url
from qserve.store.embedded import find_binary
from qserve.store.link import Link
from qserve.store.state import ClusterState
from qserve.wire.keys import DeploymentKeys, deployment_keys
from qserve.wire.signing import KeyRing, key_id

_CONNECT_TIMEOUT_S = 3.0
_OLDEST = {"Redis": (7, 0), "Valkey": (7, 2)}
# Log lines of several hosts stop making sense; leases and deadlines follow the server's clock alone.
_CLOCK_WARN_S = 1.0


class Verdict(StrEnum):
    """WARN works, and may not for long; FAIL does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `mend` says what to do; it is empty when nothing is wrong."""

    name: str
    verdict: Verdict
    finding: str
    mend: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Queue:
    """What a deployment's queue holds, beside what its status says.

    quarantined  entries that could not be trusted, since the queue was made; `reason` is the last one's
    """

    name: str
    status: DeploymentStatusInfo
    waiting: int
    quarantined: int = 0
    reason: str = ""


def has_failed(checks: Sequence[Check]) -> bool:
    """Whether anything does not work."""
    return any(check.verdict is Verdict.FAIL for check in checks)


async def examine(settings: Settings) -> list[Check]:
    """All checks, in the order in which they build upon each other; those that cannot be made are left out."""
    if settings.redis_url is None:
        return judge_no_url(settings)
    try:
        endpoint = parse_url(settings.redis_url)
    except SettingsError as error:
        return [Check("url", Verdict.FAIL, str(error), "Correct QSERVE_REDIS_URL.")]
    checks = [
        Check("url", Verdict.OK, f"{endpoint}, namespace {settings.namespace!r}."),
        judge_secret(settings, endpoint),
    ]
    link = Link(endpoint, "qserve-doctor")
    try:
        async for check in _examine_server(link, settings):
            checks.append(check)  # noqa: PERF401 (what was found before Redis went away is kept)
    except TransportError as error:  # the mend is in its message
        checks.append(Check("redis", Verdict.FAIL, str(error).removesuffix(" `qserve doctor` looks closer.")))
    finally:
        await link.close()
    return checks


async def _examine_server(link: Link, settings: Settings) -> AsyncIterator[Check]:
    began_at = time.monotonic()
    pipe = await link.ready(_CONNECT_TIMEOUT_S)
    await pipe.call("PING")
    yield Check("redis", Verdict.OK, f"It answers; connecting took {1000 * (time.monotonic() - began_at):.0f} ms.")
    try:
        facts = read_info(await link.call("INFO"))
    except BrokerRefused as error:
        yield Check("server", Verdict.WARN, f"It does not say what it is: {error}", "Allow this user INFO.")
    else:
        for judge in (judge_version, judge_persistence, judge_eviction):
            yield judge(facts)
    yield judge_clock(await _clock_ahead_s(link))
    state = ClusterState(link, settings.namespace, KeyRing(settings.secrets))
    yield judge_leader(await state.leader())
    alive, _lapsed = await state.nodes()
    yield judge_workers(list(alive.values()))
    yield await _examine_signatures(state)
    for check in judge_queues([queue async for queue in _queues(state)]):
        yield check


async def _clock_ahead_s(link: Link) -> float:
    """How far the server's clock is ahead of ours."""
    asked_at = time.time()
    seconds, micros = await link.call("TIME")
    return int(seconds) + int(micros) / 1e6 - (asked_at + time.time()) / 2


async def _examine_signatures(state: ClusterState) -> Check:
    """Whether this process has the cluster's secret, and whoever deployed had it."""
    mend = "Give every process of this namespace the same QSERVE_SECRET_KEY."
    try:
        await state.check_seal()
    except SignatureError as error:
        return Check("signatures", Verdict.FAIL, str(error), mend)
    deployed = {key.decode(errors="replace") for key in await state.link.call("HKEYS", state.keys.apps)}
    if strange := deployed - (await state.wanted()).keys():
        finding = f"Deployed with another key, and not served: {', '.join(sorted(strange))}."
        return Check("signatures", Verdict.FAIL, finding, f"{mend} Then deploy again.")
    return Check("signatures", Verdict.OK, "This process has the cluster's key.")


async def _queues(state: ClusterState) -> AsyncIterator[Queue]:
    for app, info in (await state.statuses()).items():
        for name, status in info.deployments.items():
            keys = deployment_keys(state.keys.namespace, app, name)
            depth = await calls.depth(state.link, keys)
            count, reason = await _quarantine(state.link, keys)
            yield Queue(f"{app}.{name}", status, depth.waiting, count, reason)


async def _quarantine(link: Link, keys: DeploymentKeys) -> tuple[int, str]:
    """How many entries are in quarantine, and why the last of them is."""
    last = await link.call("XREVRANGE", keys.quarantine, "+", "-", "COUNT", 1)
    if not last:
        return 0, ""
    fields = last[0][1]
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return await link.call("XLEN", keys.quarantine), named.get(b"reason", b"").decode(errors="replace")


def read_info(text: bytes) -> dict[str, str]:
    """The fields of INFO."""
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in lines if colon}


# Judging: facts in, a check out


def judge_no_url(settings: Settings) -> list[Check]:
    """Without a URL everything rests on the server that would be embedded."""
    unset = Check(
        "url",
        Verdict.WARN,
        "QSERVE_REDIS_URL is not set: serve.run() and `qserve run` start a cluster of their own, on this host only.",
        "To look at a cluster, set it (redis://host:6379/0), or `source` the file that `qserve run` prints.",
    )
    try:
        binary = find_binary(settings)
    except BrokerBinaryMissing as error:  # the mend is in its message
        return [unset, Check("embedded server", Verdict.FAIL, str(error))]
    return [unset, Check("embedded server", Verdict.OK, binary)]


def judge_secret(settings: Settings, endpoint: Endpoint) -> Check:
    """Unsigned pickles on a network are a way in."""
    if settings.secrets:
        names = ", ".join(f"{key_id(secret):08x}" for secret in settings.secrets)
        return Check("secret key", Verdict.OK, f"Calls are signed; key {names}.")
    mend = "Make one with `qserve secret new`, and give it to every process as QSERVE_SECRET_KEY."
    if endpoint.is_local:
        return Check("secret key", Verdict.WARN, "QSERVE_SECRET_KEY is not set; this Redis is on this host.", mend)
    finding = "Redis is reached over a network and QSERVE_SECRET_KEY is not set: who can write to it can run code here."
    return Check("secret key", Verdict.WARN if settings.insecure else Verdict.FAIL, finding, mend)


def judge_version(facts: dict[str, str]) -> Check:
    """Redis 7.0 and Valkey 7.2 have all that is used."""
    kind = "Valkey" if "valkey_version" in facts else "Redis"
    text = facts.get("valkey_version") or facts.get("redis_version", "")
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST[kind]:
        finding = f"{kind} {text or 'of an unknown version'} is too old."
        return Check("server", Verdict.FAIL, finding, "Use Redis 7.0 or Valkey 7.2, or a newer one.")
    return Check("server", Verdict.OK, f"{kind} {text}.")


def judge_persistence(facts: dict[str, str]) -> Check:
    """Waiting calls are worth a disk."""
    if facts.get("aof_enabled") == "1":
        return Check("persistence", Verdict.OK, "appendonly is on.")
    finding = "appendonly is off: waiting calls and deployments are lost when Redis restarts."
    return Check("persistence", Verdict.WARN, finding, "Set `appendonly yes`.")


def judge_eviction(facts: dict[str, str]) -> Check:
    """A Redis that evicts drops calls without a word."""
    policy = facts.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return Check("eviction", Verdict.OK, "maxmemory-policy is noeviction.")
    mend = "Set `maxmemory-policy noeviction`."
    if facts.get("maxmemory", "0") == "0":
        return Check("eviction", Verdict.WARN, f"maxmemory-policy is {policy}, idle because maxmemory is 0.", mend)
    finding = f"maxmemory-policy is {policy}: calls and replies are dropped when memory is full."
    return Check("eviction", Verdict.FAIL, finding, mend)


def judge_clock(ahead_s: float) -> Check:
    """Leases follow the server's clock, so this is about people who read logs."""
    finding = f"The server's clock differs from this host's by {abs(ahead_s):.1f} s."
    if abs(ahead_s) > _CLOCK_WARN_S:
        return Check("clock", Verdict.WARN, finding, "Run an NTP client on both hosts.")
    return Check("clock", Verdict.OK, finding)


def judge_leader(holder: str | None) -> Check:
    """Without one nothing is deployed or replaced; calls to running replicas go on."""
    if holder is None:
        finding = "None leads: nothing is started or replaced."
        return Check("autoscaler", Verdict.FAIL, finding, "Run `qserve autoscaler`.")
    term, _, name = holder.partition(":")
    return Check("autoscaler", Verdict.OK, f"{name} leads, in term {term}.")


def judge_workers(nodes: Sequence[NodeRecord]) -> Check:
    """Replicas need a host that takes new ones."""
    taking = [node for node in nodes if not node.draining]
    if not taking:
        finding = f"All {len(nodes)} drain." if nodes else "None has joined."
        return Check("workers", Verdict.FAIL, finding, "Run `qserve worker` on a host that reaches the same Redis.")
    return Check("workers", Verdict.OK, f"{len(taking)}: {', '.join(node.node_id for node in taking)}.")


def judge_queues(queues: Sequence[Queue]) -> list[Check]:
    """Calls that nobody takes, and entries that nobody trusted."""
    stuck = [queue for queue in queues if queue.waiting and not queue.status.replica_states.get(ReplicaState.RUNNING)]
    checks = [
        Check(
            "queue",
            Verdict.FAIL,
            f"{queue.name}: {queue.waiting} calls wait and no replica runs.",
            queue.status.message.strip() or "`qserve status` shows what its replicas do.",
        )
        for queue in stuck
    ]
    checks += [
        Check(
            "quarantine",
            Verdict.WARN,
            f"{queue.name}: {queue.quarantined} entries were not trusted. The last one: {queue.reason}",
            "Look for a process with another QSERVE_SECRET_KEY, or a stranger who writes to this Redis.",
        )
        for queue in queues
        if queue.quarantined
    ]
    return checks or [Check("queues", Verdict.OK, f"Nothing is stuck in {len(queues)} deployments.")]
