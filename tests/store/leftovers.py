"""What a namespace holds, counted by kind, so that a test can say what it leaves and a leak fails it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import redis

from qserve.wire.keys import GROUP, ROOT

# One of each for a namespace or a deployment, however many calls there were.
_SINGLE = frozenset({"apps", "generation", "history", "nodes", "replicas", "seal", "statuses", "term"})


def survey(server: redis.Redis, namespace: str) -> dict[str, int]:
    """How many of each kind there are; kinds that are not there are left out.

    waiting, pending    entries of the queues
    consumers           replicas known to the queues' groups
    records             calls without a reply; each must name an entry that is there
    delayed             calls that are not due yet, each with its envelope and its record
    replies             calls with one; each must have a time to live
    leases, node_leases, leader    must have a time to live
    dead, quarantined   entries of these streams
    code, assigned      keys of these kinds
    """
    found: Counter[str] = Counter()
    consumers: set[tuple[str, bytes]] = set()
    for name in _names(server, namespace):
        kind = name.partition("}:")[2].partition(":")[0]
        if kind in ("front", "calls"):
            _count_queue(server, name, found)
            consumers |= _consumers(server, name)
        elif kind == "call":
            _count_record(server, name, found)
        elif kind == "delayed":
            found[kind] += _count_delayed(server, name)
        elif kind == "envelopes":
            assert _sync(server.hlen(name)) == _sync(server.zcard(name.replace("envelopes", "delayed")))
        elif kind in ("lease", "node-lease", "leader"):
            assert server.pttl(name) > 0, f"{name} never lapses"
            found[{"lease": "leases", "node-lease": "node_leases"}.get(kind, kind)] += 1
        elif kind in ("dead", "quarantine"):
            found["dead" if kind == "dead" else "quarantined"] += int(_sync(server.xlen(name)))
        elif kind not in _SINGLE:
            found[kind] += 1
    found["consumers"] = len(consumers)
    return {kind: count for kind, count in found.items() if count}


def clean(server: redis.Redis, namespace: str) -> None:
    """Remove the namespace's keys, and nobody else's."""
    if names := list(_names(server, namespace)):
        server.unlink(*names)


def _names(server: redis.Redis, namespace: str) -> list[str]:
    names = {name.decode() for name in server.scan_iter(f"{ROOT}:{{{namespace}*", count=1000)}
    return [name for name in names if name.startswith((f"{ROOT}:{{{namespace}}}:", f"{ROOT}:{{{namespace}:"))]


def _count_queue(server: redis.Redis, name: str, found: Counter[str]) -> None:
    length = int(_sync(server.xlen(name)))
    for group in _sync(server.xinfo_groups(name)):
        assert group["name"] == GROUP.encode(), f"{name} has a group {group['name']!r}"
        length -= group["pending"]
        found["pending"] += group["pending"]
    found["waiting"] += length


def _consumers(server: redis.Redis, name: str) -> set[tuple[str, bytes]]:
    """The replicas that a queue's group knows, with the queue: one of both streams counts once."""
    if not _sync(server.xinfo_groups(name)):
        return set()
    return {(name.partition("}:")[0], consumer["name"]) for consumer in _sync(server.xinfo_consumers(name, GROUP))}


def _count_record(server: redis.Redis, name: str, found: Counter[str]) -> None:
    record: bytes = _sync(server.get(name))
    if record[:1] != b"Q":
        assert server.pttl(name) > 0, f"the reply {name} is never removed"
        found["replies"] += 1
        return
    base = name.partition("}:")[0]
    if record[1:2] == b"d":
        call_id = bytes.fromhex(name.rpartition(":")[2])
        assert _sync(server.zscore(f"{base}}}:delayed", call_id)), f"{name} is not delayed: its caller waits for ever"
        return
    queue = base + ("}:front" if record[1:2] == b"f" else "}:calls")
    entry = record[2:].partition(b"|")[0].decode()
    assert server.xrange(queue, entry, entry), (
        f"{name} names entry {entry}, which is not there: its caller waits for ever"
    )
    found["records"] += 1


def _count_delayed(server: redis.Redis, name: str) -> int:
    """Calls that are not due yet, each with an envelope and a record that says so."""
    base = name.removesuffix("delayed")
    ids: list[bytes] = _sync(server.zrange(name, 0, -1))
    for call_id in ids:
        assert _sync(server.hexists(f"{base}envelopes", call_id)), f"{call_id!r} has no envelope"
        assert _sync(server.get(f"{base}call:{call_id.hex()}"))[:2] == b"Qd", f"{call_id!r} has no record"
    return len(ids)


def _sync(reply: Any) -> Any:
    """redis-py's types allow for its asynchronous client, too."""
    return reply
