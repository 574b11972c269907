"""The systems that a run can visit: what each needs installed, and which module speaks to it.

Importable anywhere: the modules themselves import their packages, and only a visit imports the modules.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["ours", "limit", "redis", "ray"]

# A visit reads process trees with psutil; everything else that it needs of its own is the standard library.
_VISIT = ("psutil",)


@dataclass(frozen=True)
class Entry:
    """One system.

    kind          `ours`, `limit` (the bare loop), `redis` (a peer on Redis) or `ray`
    requirements  what pip installs into an environment of its own; empty: the interpreter that runs the bench
    packages      distributions whose versions the report names
    probe         a module that must be importable, else the system is left out
    setup         how it is set up, for readers of the report
    adapter       `module:class` of the System
    """

    kind: Kind
    packages: tuple[str, ...]
    probe: str
    setup: str
    adapter: str
    requirements: tuple[str, ...] = ()


CATALOGUE: dict[str, Entry] = {
    "qserve": Entry(
        "ours",
        ("qserve", "redis", "hiredis", "uvloop"),
        "qserve",
        "async method, max_ongoing_requests=100, signing on",
        "tests.bench.systems.qserve:QServe",
    ),
    "bare": Entry(
        "limit",
        ("hiredis", "uvloop"),
        "hiredis",
        "asyncio.Protocol and hiredis on both sides, XADD, XREADGROUP COUNT 100, SET EX, XACK and XDEL, PUBLISH; "
        "pickle 5, keyed blake2b and a timer per call on both sides, a task per call in the worker; "
        "one write per turn of the loop",
        "tests.bench.systems.bare_loop.client:BareLoop",
    ),
    "arq": Entry(
        "redis",
        ("arq", "redis", "hiredis"),
        "arq",
        "max_jobs=100, poll_delay 1 ms in the worker; the client polls every 1 ms, at load every 0.5 s",
        "tests.bench.systems.arq:Arq",
        ("arq>=0.28", "redis[hiredis]", *_VISIT),
    ),
    "dramatiq": Entry(
        "redis",
        ("dramatiq", "redis", "hiredis"),
        "dramatiq",
        "async actor, 1 process, 100 threads, Redis result backend; pickle encoder",
        "tests.bench.systems.dramatiq:Dramatiq",
        ("dramatiq[redis]>=2", "redis[hiredis]", *_VISIT),
    ),
    "taskiq": Entry(
        "redis",
        ("taskiq", "taskiq-redis", "redis", "hiredis", "uvloop"),
        "taskiq_redis",
        "RedisStreamBroker, RedisAsyncResultBackend, 1 worker, 100 async tasks, uvloop; the client polls every 1 ms, "
        "at load every 50 ms; bytes travel as base64, because its results are JSON",
        "tests.bench.systems.taskiq:Taskiq",
        ("taskiq[uv]>=0.12", "taskiq-redis>=1.2", "redis[hiredis]", *_VISIT),
    ),
    "saq": Entry(
        "redis",
        ("saq", "redis", "hiredis"),
        "saq",
        "concurrency 100, replies by pub/sub; pickle",
        "tests.bench.systems.saq:Saq",
        ("saq[redis,hiredis]>=0.26", "typing_extensions", *_VISIT),
    ),
    "ray": Entry(
        "ray",
        ("ray",),
        "ray.serve",
        "Ray Serve handle, max_ongoing_requests=100, throughput settings; no Redis",
        "tests.bench.systems.ray:Ray",
    ),
}


def names_of(*kinds: Kind) -> tuple[str, ...]:
    """The systems of these kinds, in the order of the catalogue."""
    return tuple(name for name, entry in CATALOGUE.items() if entry.kind in kinds)
