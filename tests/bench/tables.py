"""Tables as plain text and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of text."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def plain(self) -> str:
        """Columns padded with spaces; the first flush left, the others flush right."""
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        body = [
            "  ".join(
                cell.ljust(width) if not column else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, "-" * len(self.title), *body])

    def markdown(self) -> str:
        """A Markdown table below a heading."""
        rule = "|".join(["---", *["---:"] * (len(self.head) - 1)])
        rows = [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([f"### {self.title}", "", f"| {' | '.join(self.head)} |", f"|{rule}|", *rows])
