"""The goals of the data path, and whether this run met them. Goals are ratios where peers can be measured beside us."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.summary import Round, Spread
from tests.bench.systems import names_of

Measure = Callable[[Round], float | None]
OURS = "qserve"


@dataclass(frozen=True)
class Target:
    """One goal: the measure of a round, and the limit that its median must keep."""

    title: str
    goal: str
    measure: Measure
    limit: float
    digits: int = 2
    at_least: bool = False


@dataclass(frozen=True)
class Finding:
    """What a run says of a goal; `met` is None when the run did not measure it."""

    title: str
    goal: str
    measured: str
    met: bool | None


def judge(rounds: Sequence[Round]) -> list[Finding]:
    """Every goal of the first step, held against these rounds."""
    return [_finding(target, rounds) for target in _TARGETS]


def _finding(target: Target, rounds: Sequence[Round]) -> Finding:
    spread = Spread.of(value for found in rounds if (value := target.measure(found)) is not None)
    if spread is None:
        return Finding(target.title, target.goal, "not measured", None)
    met = spread.median >= target.limit if target.at_least else spread.median <= target.limit
    return Finding(target.title, target.goal, spread.text(target.digits), met)


def _own(figure: str) -> Measure:
    return lambda found: found.get(OURS, {}).get(figure)


def _against(figure: str, *peers: str, best: Callable[[list[float]], float] = min, own: str | None = None) -> Measure:
    """Our figure over the best peer's of the same round."""

    def measure(found: Round) -> float | None:
        mine = found.get(OURS, {}).get(own or figure)
        theirs = [found[peer][figure] for peer in peers if figure in found.get(peer, {})]
        return mine / best(theirs) if mine is not None and theirs else None

    return measure


def _tail(found: Round) -> float | None:
    ours = found.get(OURS, {})
    return ours["p99_ms"] / ours["p50_ms"] if "p99_ms" in ours else None


def _data_commands(found: Round) -> float | None:
    """Commands on data. The tables show the script invocations that carry some of them too."""
    ours = found.get(OURS, {})
    return ours["commands_1"] - ours["scripts_1"] if "commands_1" in ours else None


_REDIS, _RAY = names_of("redis"), names_of("ray")
_PEERS = _REDIS + _RAY
_TARGETS = (
    Target(
        "calls/s, 1,000 in flight",
        ">= 5x the fastest peer",
        _against("calls_per_s", *_PEERS, best=max),
        5,
        at_least=True,
    ),
    Target("p50, 1 in flight", "<= 1/3 of the best Redis peer", _against("p50_ms", *_REDIS), 1 / 3),
    Target("p50, 1 in flight", "<= 1/2 of Ray Serve", _against("p50_ms", *_RAY), 1 / 2),
    Target("p99 / p50, 1 in flight", "<= 4", _tail, 4),
    Target("Redis commands per call, 1 in flight, without script invocations", "<= 8", _data_commands, 8, 1),
    Target("Redis commands per call, 1,000 in flight", "<= 4", _own("commands_load"), 4),
    Target("client CPU per call at load, us", "<= 90", _own("client_us"), 90, 0),
    Target("worker CPU per call at load, us", "<= 90", _own("worker_us"), 90, 0),
    Target(
        "a thread that blocks, p50",
        "<= 1/2 of the best Redis peer",
        _against("p50_ms", *_REDIS, own="sync_p50_ms"),
        1 / 2,
    ),
    Target("1 MiB there and back", "<= the best peer", _against("payload_ms", *_PEERS), 1),
    Target("idle, commands/s per process", "<= 3", _own("idle_commands_per_process_s"), 3, 1),
    Target("idle, CPU % of the busiest process", "< 1", _own("idle_cpu_pct"), 1),
    Target("script start to first reply, all embedded, s", "<= 2", _own("embedded_start_s"), 2),
    Target("new replica to its first reply, s", "<= 1", _own("replica_start_s"), 1),
    Target("bytes in Redis per waiting call", "<= 800", _own("bytes_per_waiting_call"), 800, 0),
)
