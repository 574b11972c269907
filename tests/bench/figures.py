"""The figures of a run: their names, and how they read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure; `digits` after the point."""

    title: str
    digits: int
    compared: bool = True


FIGURES: dict[str, Figure] = {
    "p50_ms": Figure("1 in flight, p50 ms", 2),
    "p95_ms": Figure("1 in flight, p95 ms", 2),
    "p99_ms": Figure("1 in flight, p99 ms", 2),
    "sync_p50_ms": Figure("a thread that blocks, p50 ms", 2),
    "sync_p95_ms": Figure("a thread that blocks, p95 ms", 2),
    "sync_p99_ms": Figure("a thread that blocks, p99 ms", 2),
    "calls_per_s": Figure("calls/s, 1,000 in flight", 0),
    "client_us": Figure("client CPU per call at load, us", 0),
    "worker_us": Figure("worker CPU per call at load, us", 0),
    "server_us": Figure("server CPU per call at load, us", 0),
    "commands_1": Figure("commands per call, 1 in flight (inside scripts too)", 1),
    "scripts_1": Figure("- of them script invocations", 2, compared=False),
    "commands_load": Figure("commands per call, 1,000 in flight (inside scripts too)", 2),
    "scripts_load": Figure("- of them script invocations", 2, compared=False),
    "payload_ms": Figure("1 MiB there and back, ms", 1),
    "idle_commands_per_s": Figure("idle, commands/s of all processes", 1),
    "idle_commands_per_process_s": Figure("idle, commands/s per process", 1, compared=False),
    "idle_cpu_pct": Figure("idle, CPU % of the busiest process", 2),
    "idle_server_cpu_pct": Figure("idle, CPU % of the server", 2),
    "cold_start_s": Figure("worker start to first reply, s", 2),
    "embedded_start_s": Figure("script start to first reply, all embedded, s", 2, compared=False),
    "replica_start_s": Figure("new replica to its first reply, s", 2, compared=False),
    "bytes_per_waiting_call": Figure("bytes in Redis per waiting call", 0),
}
