"""The traffic that policies are tried on: five shapes, each from a seed."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, exp, log, pi
from random import Random

from scripts.simulator.queue import Trace

# A call takes so long on average; the times spread log-normally with a coefficient of variation of 1.
SERVICE_S = 0.5
COLD_START_S = 10.0
MAX_ONGOING = 5
_SIGMA = log(2.0) ** 0.5
_MU = log(SERVICE_S) - log(2.0) / 2


def steady(seed: int, length: float = 1.0) -> Trace:
    """20 calls a second, beginning with the replicas that they need."""
    return _trace("steady", seed, lambda _: 20.0, 20.0, 2400 * length, initial=5)


def diurnal(seed: int, length: float = 1.0) -> Trace:
    """From 2 to 40 calls a second and back, twice; a day in an hour."""
    return _trace("diurnal", seed, lambda at: 21 - 19 * cos(2 * pi * at / 3600), 40.0, 7200 * length)


def burst(seed: int, length: float = 1.0) -> Trace:
    """5 calls a second, and 60 for a minute in every ten."""
    return _trace("burst", seed, lambda at: 60.0 if 240 <= at % 600 < 300 else 5.0, 60.0, 3600 * length, initial=2)


def flash_crowd(seed: int, length: float = 1.0) -> Trace:
    """5 calls a second; after five minutes 100 at once, which fade in as many minutes."""
    return _trace(
        "flash crowd",
        seed,
        lambda at: 5.0 if at < 300 else 5.0 + 95.0 * exp((300 - at) / 300),
        100.0,
        2400 * length,
        initial=2,
    )


def zero_to_peak(seed: int, length: float = 1.0) -> Trace:
    """Nothing, then 50 calls a second for ten minutes, twice; it may sleep between."""
    return _trace("zero to peak", seed, lambda at: 50.0 if 300 <= at % 2400 < 900 else 0.0, 50.0, 4800 * length, low=0)


ALL: tuple[Callable[..., Trace], ...] = (steady, diurnal, burst, flash_crowd, zero_to_peak)


def _trace(
    name: str,
    seed: int,
    rate: Callable[[float], float],
    highest: float,
    lasts_s: float,
    *,
    low: int = 1,
    initial: int | None = None,
) -> Trace:
    """Arrivals at random (Poisson) with the given rate over time, thinned from the highest."""
    random = Random(f"{name} {seed}")  # noqa: S311 (a simulation must repeat)
    calls: list[tuple[float, float]] = []
    at = 0.0
    while (at := at + random.expovariate(highest)) < lasts_s:
        if random.random() * highest < rate(at):
            calls.append((at, random.lognormvariate(_MU, _SIGMA)))
    first = low if initial is None else initial
    return Trace(name, calls, lasts_s, low, 100, first, COLD_START_S, MAX_ONGOING)
