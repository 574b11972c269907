"""What a run says: figures, ratios, goals, and on what all of it was measured."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.figures import FIGURES
from tests.bench.machine import Machine
from tests.bench.options import Options
from tests.bench.summary import Round, compared, ratio_digits, ratio_of, spread_of
from tests.bench.systems import CATALOGUE
from tests.bench.tables import Table
from tests.bench.verdict import OURS, judge
from tests.bench.visits import Result

_BEGIN, _END = "<!-- bench results: begin -->", "<!-- bench results: end -->"
_NOT_MEASURED = "-"


@dataclass
class Report:
    """A whole run."""

    options: Options
    machine: Machine
    left_out: dict[str, str]
    rounds: list[dict[str, Result]] = field(default_factory=list)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def plain(self) -> str:
        """For a terminal."""
        return "\n\n".join([*(table.plain() for table in self._tables()), *self._failures(), self._setting()])

    def markdown(self) -> str:
        """For the documentation."""
        setup = "\n".join(f"- **{name}**: {CATALOGUE[name].setup}" for name in self._visited())
        parts = [self._setting(), setup, *(table.markdown() for table in self._tables()), *self._failures()]
        return "\n\n".join(parts) + "\n"

    def json(self) -> str:
        """Everything, for a program."""
        return json.dumps(
            {
                "began": self.began.isoformat(timespec="seconds"),
                "machine": dataclasses.asdict(self.machine),
                "sizes": dataclasses.asdict(self.options.sizes),
                "transport": self._transport(),
                "left_out": self.left_out,
                "setup": {name: CATALOGUE[name].setup for name in self._visited()},
                "rounds": [{name: dataclasses.asdict(found) for name, found in made.items()} for made in self.rounds],
                "verdict": [dataclasses.asdict(finding) for finding in judge(self._figures())],
            },
            indent=2,
        )

    def update(self, document: Path) -> None:
        """Write the Markdown between the marks of a document, or at its end when it has none."""
        text = document.read_text() if document.exists() else "# Performance\n"
        if _BEGIN not in text:
            text = f"{text.rstrip()}\n\n{_BEGIN}\n{_END}\n"
        before, _, rest = text.partition(_BEGIN)
        _, _, after = rest.partition(_END)
        document.parent.mkdir(parents=True, exist_ok=True)
        document.write_text(f"{before}{_BEGIN}\n{self.markdown()}{_END}{after}")

    def _visited(self) -> list[str]:
        return [name for name in self.options.systems if any(name in made for made in self.rounds)]

    def _figures(self) -> list[Round]:
        return [{name: found.figures for name, found in made.items() if not found.error} for made in self.rounds]

    def _tables(self) -> list[Table]:
        rounds = self._figures()
        systems = [name for name in self._visited() if any(name in found for found in rounds)]
        tables = [self._figure_table(systems, rounds)]
        if OURS in systems and len(systems) > 1:
            tables += [self._ratio_table([name for name in systems if name != OURS], rounds)]
        if OURS in systems:
            tables += [self._verdict_table(rounds)]
        return tables

    def _figure_table(self, systems: Sequence[str], rounds: Sequence[Round]) -> Table:
        rows = []
        for key, figure in FIGURES.items():
            spreads = [spread_of(rounds, name, key) for name in systems]
            rows.append(
                [figure.title, *(spread.text(figure.digits) if spread else _NOT_MEASURED for spread in spreads)]
            )
        return Table("Figures: median (lowest-highest) of the rounds", ["", *systems], rows)

    def _ratio_table(self, systems: Sequence[str], rounds: Sequence[Round]) -> Table:
        rows = []
        for key in compared():
            ratios = [ratio_of(rounds, key, OURS, name) for name in systems]
            rows.append(
                [FIGURES[key].title, *(ratio.text(ratio_digits(ratio)) if ratio else _NOT_MEASURED for ratio in ratios)]
            )
        return Table("qserve divided by each, round by round", ["", *systems], rows)

    def _verdict_table(self, rounds: Sequence[Round]) -> Table:
        words = {True: "yes", False: "no", None: _NOT_MEASURED}
        rows = [[found.title, found.goal, found.measured, words[found.met]] for found in judge(rounds)]
        return Table("Goals of the first step", ["figure", "goal", "measured", "met"], rows)

    def _failures(self) -> list[str]:
        said = [f"{name} was left out: {why}." for name, why in self.left_out.items()]
        for number, made in enumerate(self.rounds, 1):
            said += [f"{name} failed in round {number}: {found.error}" for name, found in made.items() if found.error]
        return ["\n".join(said)] if said else []

    def _setting(self) -> str:
        versions = {name: found.versions for made in self.rounds for name, found in made.items()}
        packages = "; ".join(
            f"{name}: {', '.join(f'{package} {version}' for package, version in found.items()) or 'no package'}"
            for name, found in versions.items()
        )
        return (
            f"{self.began:%Y-%m-%d}, {len(self.rounds)} interleaved rounds of {self.options.sizes.load_s:g} s at load, "
            f"one client process and one worker process for each system, every reply checked, {self._transport()}. "
            f"{self.machine.server}, persistence off; Python {self.machine.python}; {self.machine.cpus} x "
            f"{self.machine.cpu}, {self.machine.system}. {packages}."
        )

    def _transport(self) -> str:
        return "a unix socket" if self.options.unix else "loopback TCP"
