"""What is measured of one system, each figure by one function. The questions are the same for all of them."""

import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench.cpu import descendants, snapshot, spent
from tests.bench.options import Sizes
from tests.bench.server import Probe, difference, scripts_in
from tests.bench.systems.system import System, check, message

Figures = dict[str, float]
_PAYLOAD = bytes(range(256)) * 4096
_SETTLE_S = 10.0
_QUIET_S = 0.3


@dataclass
class Bench:
    """One system under measure: the system, its server, and what was seen on the way."""

    system: System
    sizes: Sizes
    probe: Probe | None
    server_pid: int
    own_pid: int
    notes: dict[str, dict[str, float]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Commands so far; none without a server."""
        return self.probe.counts() if self.probe else {}

    def pids(self) -> dict[int, str]:
        """The processes that cost CPU: client, workers, server."""
        server = {self.server_pid: "server"} if self.probe else {}
        return {self.own_pid: "client"} | descendants() | server


async def latency(bench: Bench) -> Figures:
    """One call in flight from asyncio, and the commands that it costs."""
    system, sizes = bench.system, bench.sizes
    system.tune(1)
    for number in range(50):
        check(message(number), await system.call(message(number)))
    before = bench.counts()
    taken: list[float] = []
    until = time.perf_counter() + sizes.latency_s
    while len(taken) < sizes.latency_calls and time.perf_counter() < until:
        argument = message(len(taken))
        started = time.perf_counter()
        reply = await system.call(argument)
        taken.append(time.perf_counter() - started)
        check(argument, reply)
    return _percentiles("", taken) | _commands(bench, "1", before, len(taken))


async def thread_latency(bench: Bench) -> Figures:
    """One call in flight from a thread that blocks."""
    if not bench.system.has_threads:
        return {}
    return _percentiles("sync_", await asyncio.to_thread(_call_in_a_row, bench.system, bench.sizes))


async def load(bench: Bench) -> Figures:
    """Many calls in flight: throughput, commands and CPU of each call."""
    system, sizes = bench.system, bench.sizes
    system.tune(sizes.in_flight)
    await system.load(sizes.warm_s, sizes.in_flight)
    counts, used = bench.counts(), snapshot(bench.pids())
    started = time.perf_counter()
    done = await system.load(sizes.load_s, sizes.in_flight)
    elapsed = time.perf_counter() - started
    cost = spent(used, snapshot(bench.pids()))
    client, server = cost.pop(bench.own_pid), cost.pop(bench.server_pid, 0.0)
    figures = {"calls_per_s": done / elapsed, "client_us": client * 1e6 / done}
    figures["worker_us"] = sum(cost.values()) * 1e6 / done
    if bench.probe:
        figures["server_us"] = server * 1e6 / done
    return figures | _commands(bench, "load", counts, done)


async def payload(bench: Bench) -> Figures:
    """1 MiB of bytes there and back."""
    bench.system.tune(1)
    check(_PAYLOAD, await bench.system.call(_PAYLOAD))
    taken = []
    for _ in range(bench.sizes.payload_calls):
        started = time.perf_counter()
        reply = await bench.system.call(_PAYLOAD)
        taken.append(time.perf_counter() - started)
        check(_PAYLOAD, reply)
    return {"payload_ms": statistics.median(taken) * 1e3}


async def idle(bench: Bench) -> Figures:
    """Nothing to do: commands per second, and the CPU of the busiest process of the system's own."""
    await asyncio.sleep(1.0)
    pids = bench.pids()
    counts, used, started = bench.counts(), snapshot(pids), time.perf_counter()
    await asyncio.sleep(bench.sizes.idle_s)
    elapsed = time.perf_counter() - started
    cost = {pid: 100 * seconds / elapsed for pid, seconds in spent(used, snapshot(pids)).items()}
    bench.notes["idle_cpu_pct"] = {f"{pids[pid]} ({pid})": percent for pid, percent in cost.items()}
    server = cost.pop(bench.server_pid, 0.0)
    figures = {"idle_cpu_pct": max(cost.values())}
    if bench.probe:
        made = difference(counts, bench.counts())
        bench.notes["idle_commands"] = {name: float(count) for name, count in made.items()}
        figures["idle_commands_per_s"] = sum(made.values()) / elapsed
        figures["idle_commands_per_process_s"] = figures["idle_commands_per_s"] / len(cost)
        figures["idle_server_cpu_pct"] = server
    return figures


async def waiting(bench: Bench) -> Figures:
    """Calls that no worker takes: what one of them weighs in the server."""
    if not bench.probe:
        return {}
    before = await _settled_memory(bench.probe)
    await bench.system.submit(bench.sizes.waiting_calls)
    after = await _settled_memory(bench.probe)
    return {"bytes_per_waiting_call": (after - before) / bench.sizes.waiting_calls}


async def _settled_memory(probe: Probe) -> int:
    """Used memory once commands have stopped growing: a client may still be sending."""
    until = time.perf_counter() + _SETTLE_S
    memory = probe.memory()
    while time.perf_counter() < until:
        await asyncio.sleep(_QUIET_S)
        # Buffers of connections come and go by a few hundred bytes.
        if abs((now := probe.memory()) - memory) < 4096:
            return now
        memory = now
    return memory


def _call_in_a_row(system: System, sizes: Sizes) -> list[float]:
    taken: list[float] = []
    for number in range(50):
        check(message(number), system.call_from_thread(message(number)))
    until = time.perf_counter() + sizes.latency_s
    while len(taken) < sizes.latency_calls and time.perf_counter() < until:
        argument = message(len(taken))
        started = time.perf_counter()
        reply = system.call_from_thread(argument)
        taken.append(time.perf_counter() - started)
        check(argument, reply)
    return taken


def _percentiles(prefix: str, taken: Sequence[float]) -> Figures:
    """p50, p95 and p99 in ms, by nearest rank."""
    ranked = sorted(taken)
    return {
        f"{prefix}p{percent}_ms": ranked[math.ceil(percent / 100 * len(ranked)) - 1] * 1e3 for percent in (50, 95, 99)
    }


def _commands(bench: Bench, name: str, before: dict[str, int], calls: int) -> Figures:
    """Commands of each call that the server ran, and how many of them started a script."""
    if not bench.probe:
        return {}
    made = difference(before, bench.counts())
    bench.notes[f"commands_{name}"] = {command: count / calls for command, count in made.items()}
    return {f"commands_{name}": sum(made.values()) / calls, f"scripts_{name}": scripts_in(made) / calls}
