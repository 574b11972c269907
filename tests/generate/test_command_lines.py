"""Every `qserve` command line that we write down, parsed by the real command line; nothing is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
import yaml

from qserve.cli.root import qserve
from tests.generate.variants import TEXTS
from tests.support.cluster import ROOT

# From `qserve` to the end of the command: a pipe, a comment, a closing quote, or a gap before an explanation.
_COMMAND = re.compile(r"(?<![\w./:-])(?<!import )qserve +((?:'[^']*'|\"[^\"]*\"|[^'\"`|;&>)#\n ]+| (?! ))+)")
_BLOCK = re.compile(r"```(?:bash|dockerfile)\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_EXEC_START = re.compile(r"^ExecStart=\S*/(qserve .*)$", re.MULTILINE)


def refusal(words: list[str], *, is_mention: bool = False) -> str:
    """What the command line says against these words behind `qserve`; empty when it takes them.

    is_mention  a sentence may name a command without its arguments
    """
    command: click.Command = qserve
    name, rest, parent = "qserve", words, None
    try:
        while isinstance(command, click.Group):
            parent = command.make_context(name, rest, parent=parent)
            rest = [*parent._protected_args, *parent.args]
            if not rest:
                return ""
            found, chosen, rest = command.resolve_command(parent, rest)
            assert found is not None
            assert chosen is not None
            name, command = found, chosen
        command.make_context(name, rest, parent=parent)
    except click.exceptions.Exit:  # --help and --version have done their work
        return ""
    except click.MissingParameter as error:
        return "" if is_mention and not rest else error.format_message()
    except click.ClickException as error:
        return error.format_message()
    return ""


def in_text(text: str) -> Iterator[str]:
    """The command lines of a shell text, of `code`, or of a comment in it."""
    for match in _COMMAND.finditer(text):
        words = match[1].strip().removeprefix("qserve ")  # an image of that name stands before it
        if re.match(r"[a-z]", words):
            yield words


def in_yaml(value: object) -> Iterator[str]:
    """The commands of containers, however deep."""
    if isinstance(value, list) and value[:1] == ["qserve"]:
        yield shlex.join(value[1:])
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from in_yaml(inner)


def in_generated(name: str, text: str) -> Iterator[str]:
    """Those that the file runs, and those that its comments tell people to run."""
    if name.endswith((".yaml", ".yml")):
        for document in yaml.safe_load_all(text):
            yield from in_yaml(document)
    for match in _EXEC_START.finditer(text):
        yield from in_text(match[1])
    for line in re.findall(r"^#     (.*)$|`([^`]+)`", text, re.MULTILINE):
        yield from in_text("".join(line))


GENERATED = sorted({words for name, text in TEXTS.items() for words in in_generated(name, text)})
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}


def commands_of(text: str, code: re.Pattern[str]) -> set[str]:
    """Those in a page's code of this kind."""
    return {words for match in code.finditer(text) for words in in_text(match[1])}


@pytest.mark.parametrize("words", GENERATED)
def test_a_generated_file_runs_only_commands_that_there_are(words):
    """A file that was generated once is run for years: an option that does not exist would stop every pod of it."""
    assert not refusal(shlex.split(words))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_only_commands_that_there_are(page):
    """A stranger types what stands there."""
    typed, named = commands_of(PAGES[page], _BLOCK), commands_of(_BLOCK.sub("", PAGES[page]), _INLINE)
    refused = {words: refusal(shlex.split(words)) for words in typed}
    refused |= {words: refusal(shlex.split(words), is_mention=True) for words in named - typed}
    assert {words: text for words, text in refused.items() if text} == {}


@pytest.mark.parametrize("words", [["worker", "--colour"], ["wurker"], ["generate", "k8s", "--workers", "none"]])
def test_a_command_that_does_not_exist_is_found_out(words):
    """The tests above would be green if nothing were ever refused."""
    assert refusal(words)


def test_there_are_commands_to_check():
    """The tests above would be green if none were found."""
    assert any("--replicas Embedder=2" in words for words in GENERATED)
    assert any(words.startswith("autoscaler --heartbeat-file") for words in GENERATED)
    assert "secret new" in GENERATED
    assert sum(len(commands_of(text, _BLOCK)) for text in PAGES.values()) > 30
