"""`qserve logs`: a person who is stuck finds what a replica wrote, on whichever host it was."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import suppress

import pytest

import qserve as serve
from qserve import loops
from qserve.store import logs
from qserve.store.connection import endpoint_of
from qserve.store.link import Link
from qserve.store.logs import LogLine
from qserve.wire.keys import ClusterKeys
from tests.cli.conftest import QSERVE, at_a_terminal
from tests.support.cluster import eventually


@serve.deployment(num_replicas=2)
class Printer:
    def __call__(self, text: str) -> None:
        with suppress(BrokenPipeError):
            print(text, flush=True)  # noqa: T201 (what it prints is what is tested)


@pytest.fixture(scope="module")
def printer(cluster):
    """A deployment whose replicas print what they are told."""
    return serve.run(Printer.bind(), name="shop")


def lines_of(invoke, *arguments: str) -> list[dict[str, object]]:
    """What `qserve logs --json` shows."""
    result = invoke("logs", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(text) for text in result.stdout.splitlines()]


def test_what_a_replica_prints_is_shown_with_its_mark(printer, invoke):
    """As on the worker's own stdout, so that both can be compared."""
    printer.remote("it is here").result(timeout_s=10)
    eventually(lambda: any(found["msg"] == "it is here" for found in lines_of(invoke, "shop")))
    (line,) = [found for found in lines_of(invoke, "shop") if found["msg"] == "it is here"]

    mark = f"(Printer#{str(line['replica']).rpartition('-')[2]} pid={line['pid']})"
    shown = invoke("logs", "Printer").stdout
    assert f"{mark} it is here\n" in shown
    assert (line["app"], line["deployment"], line["source"]) == ("shop", "Printer", "replica")
    assert invoke("logs", mark.split(maxsplit=1)[0].strip("("), "-t").stdout.endswith(f"Z {mark} it is here\n")


def test_the_worker_says_among_them_what_it_did(printer, invoke):
    """Between two lines of a replica its process may have been replaced."""
    told = [found["msg"] for found in lines_of(invoke, "shop.Printer") if found["source"] == "worker"]
    assert sum(str(text).endswith("is started.") for text in told) >= 2
    assert told.count("It takes calls.") >= 2


def test_arguments_of_calls_are_in_no_line_of_ours(printer, invoke):
    """They may be anybody's secrets; only what user code prints of them is there."""
    with pytest.raises(TypeError):
        printer.remote("nobody's business", "hunter2").result(timeout_s=10)
    printer.remote("a later line").result(timeout_s=10)
    eventually(lambda: "a later line" in invoke("logs", "shop").stdout)
    assert "hunter2" not in invoke("logs", "shop", "--tail", "1000").stdout


def test_following_shows_lines_as_they_come_until_ctrl_c(printer, start, settings):
    """130 is what a shell expects of a program that was interrupted."""
    follows = start("logs", "shop", "-f", "--tail", "0", settings=settings)
    for attempt in range(100):  # until it listens
        printer.remote(f"attempt {attempt}").result(timeout_s=10)
        with suppress(AssertionError):
            eventually(lambda: "attempt" in follows.out, within_s=0.5)
            break
    printer.remote("one more").result(timeout_s=10)
    follows.says("one more")
    follows.signal(signal.SIGINT)
    assert follows.ended() == 130
    assert follows.err == ""


def test_a_reader_that_has_seen_enough_ends_it_quietly(printer, settings, clean_env):
    """`qserve logs -f | head -1`."""
    printer.remote("first").result(timeout_s=10)
    command = [QSERVE, "logs", "shop", "-f", "--tail", "1"]
    process = subprocess.Popen(
        command, env=clean_env | settings.child_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    for number in range(100):
        printer.remote(str(number)).result(timeout_s=10)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.3)
            break
    assert process.returncode == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_terminal_gets_colours_and_nothing_that_paints_over_other_lines(settings, clean_env, folder):
    """A replica's line may hold anything: it must not clear the screen of who looks for the error."""
    write(settings, "\x1b[31mred\x1b[0m\x1b[2J\rover\x07", "plain")
    env = clean_env | settings.child_env()
    seen = at_a_terminal(("logs", "written.By"), env, folder, until="plain", keys="")
    assert seen.code == 0
    assert "\x1b[31mred\x1b[0m[2Jover\r\n" in seen.text
    first, _second = seen.text.splitlines()
    assert first.startswith("\x1b[")

    plain = at_a_terminal(("logs", "written.By"), env | {"NO_COLOR": "1"}, folder, until="plain", keys="")
    assert plain.text.splitlines()[1] == "(By#1 pid=7) plain"


@pytest.mark.parametrize("since", ["1h", "1.5h", "2001-01-01", "2001-01-01T10:00:00+02:00"])
def test_since_takes_spans_and_times(printer, invoke, since):
    """Both stand in incident reports."""
    assert lines_of(invoke, "shop", "--since", since)
    assert lines_of(invoke, "shop", "--since", "2999-01-01") == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("shop", "--since", "yesterday"), "30s, 5m, 2h"),
        (("ship",), "There are: shop: Printer."),
        (("Printer#0000",), "There are: Printer#"),
        (("shop", "--tail", "-1"), "--tail"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(printer, invoke, arguments, says):
    """A typo is found at a glance."""
    result = invoke("logs", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_nothing_kept_is_said_where_it_does_not_mix_with_lines(printer, invoke):
    """An empty answer looks like a hang or a bug."""
    result = invoke("logs", "shop", "--since", "2999-01-01")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No lines are kept.\n")


def write(settings, *texts: str) -> None:
    """Lines as a worker stores them, of a deployment that is not there any more."""

    async def append() -> None:
        link = Link(endpoint_of(settings), "test")
        lines = [LogLine("written", "By", "By-1", 7, "h", text) for text in texts]
        await logs.append(link, ClusterKeys(settings.namespace), lines, 100)
        await link.close()

    loops.run(append(), settings)
