"""Medians and spreads of the rounds, and ratios that are taken inside a round: machines drift, ratios less."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.bench.figures import FIGURES

# What one round found: system -> figure -> value. A system that failed or was left out is absent.
Round = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """The spread of these values; None of none."""
        ranked = sorted(values)
        return cls(statistics.median(ranked), ranked[0], ranked[-1]) if ranked else None

    def text(self, digits: int) -> str:
        """`1.23 (1.10-1.40)`, without the range when there is none to show."""
        median, low, high = (f"{value:,.{digits}f}" for value in (self.median, self.low, self.high))
        return median if low == high else f"{median} ({low}-{high})"


def spread_of(rounds: Sequence[Round], system: str, figure: str) -> Spread | None:
    """One figure of one system over the rounds that have it."""
    return Spread.of(found[system][figure] for found in rounds if figure in found.get(system, {}))


def ratio_of(rounds: Sequence[Round], figure: str, ours: str, theirs: str) -> Spread | None:
    """`ours` divided by `theirs`, round by round."""
    return Spread.of(
        found[ours][figure] / found[theirs][figure]
        for found in rounds
        if figure in found.get(ours, {}) and found.get(theirs, {}).get(figure)
    )


def ratio_digits(value: Spread) -> int:
    """As many digits as a ratio of this size needs."""
    return 2 if value.median < 10 else 1


def compared() -> list[str]:
    """The figures that all systems have."""
    return [key for key, figure in FIGURES.items() if figure.compared]
