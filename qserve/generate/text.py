"""How generated YAML reads: in the order it was written, command lines on one line, reasons as comments above."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

_WIDTH = 110


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line, as people write command lines; nested lists indented."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:  # noqa: FBT001 (its signature is yaml's)
        plain = all(not isinstance(item, dict | list | tuple) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain if flow_style is None else flow_style)

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 (its signature is yaml's)
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (its signature is yaml's)
        return True


def dump(value: Mapping[str, Any], *, comment: str = "", indent: int = 0) -> str:
    """YAML of a mapping in its own order, below a comment, `indent` spaces to the right."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=_WIDTH + 30, allow_unicode=True)
    return textwrap.indent(note(comment) + text, " " * indent)


def note(comment: str) -> str:
    """Lines of a comment: paragraphs flow to the width; indented lines stay as they are, for they are to be copied."""
    lines: list[str] = []
    paragraph: list[str] = []
    for line in [*textwrap.dedent(comment).strip("\n").splitlines(), ""]:
        if line.strip() and not line.startswith(" "):
            paragraph.append(line)
            continue
        lines += textwrap.wrap(" ".join(paragraph), _WIDTH, break_long_words=False, break_on_hyphens=False)
        lines.append(line)
        paragraph.clear()
    return "".join(f"# {line}".rstrip() + "\n" for line in lines[:-1])


def together(files: Mapping[str, str]) -> str:
    """All files as one text: for `kubectl apply -f -` where they are manifests, else each below its name."""
    if all(name.endswith(".yaml") for name in files):
        return "---\n".join(files.values())
    if len(files) == 1:
        return next(iter(files.values()))
    return "\n".join(f"# ===== {name} =====\n{text}" for name, text in files.items())
