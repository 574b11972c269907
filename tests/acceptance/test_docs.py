"""Every Python snippet of the README and the docs, run as it stands by a stranger with an empty folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.cluster import ROOT, eventually, free_port

_BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<output>.*?)```)?", re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A block of code, and the output that the page promises."""

    page: str
    number: int
    code: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def snippets() -> list[Snippet]:
    """All runnable blocks; those marked `python notest` need a cluster of their own and are left out."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        Snippet(page.name, number, block["code"], block["output"])
        for page in pages
        for number, block in enumerate(_BLOCK.finditer(page.read_text()), 1)
    ]


SCRIPTS = [snippet for snippet in snippets() if "FastAPI" not in snippet.code]
SERVICES = [snippet for snippet in snippets() if "FastAPI" in snippet.code]


def stranger(folder: Path) -> dict[str, str]:
    """The environment of somebody who has set nothing; temporary files go to `folder`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("QSERVE_")}
    return {**env, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}


@pytest.mark.parametrize("snippet", SCRIPTS, ids=str)
def test_a_snippet_prints_what_the_page_says(snippet: Snippet, tmp_path: Path):
    """A page whose code does not run costs a newcomer the first ten minutes, and us the newcomer."""
    (tmp_path / "snippet.py").write_text(snippet.code)

    done = subprocess.run(
        [sys.executable, "snippet.py"],
        cwd=tmp_path,
        env=stranger(tmp_path),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == snippet.output, done.stderr
    assert not list(tmp_path.glob("qserve-*")), "the embedded cluster's folder is left behind"


@pytest.mark.parametrize("snippet", SERVICES, ids=str)
def test_a_web_snippet_answers_requests(snippet: Snippet, tmp_path: Path):
    """The FastAPI endpoint works with the very command that the page names."""
    (tmp_path / "web.py").write_text(snippet.code)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "web:app", "--port", str(port), "--log-level", "warning"]
    service = subprocess.Popen(command, cwd=tmp_path, env=stranger(tmp_path))
    url = f"http://127.0.0.1:{port}/shout"
    try:
        eventually(lambda: _answers(url) == {"answer": "HELLO"}, within_s=30, what=f"an answer of {url}")
    finally:
        service.terminate()
        assert service.wait(20) == -signal.SIGTERM, "uvicorn raises the signal again when all is shut down"
    assert not list(tmp_path.glob("qserve-*")), "the embedded cluster's folder is left behind"


def test_there_are_snippets_to_run():
    """The tests above would be green on a README without code."""
    assert len([s for s in SCRIPTS if s.page == "README.md"]) >= 4
    assert len(SERVICES) >= 1


def _answers(url: str) -> object:
    try:
        return httpx.get(url, params={"text": "hello"}, timeout=10).json()
    except httpx.TransportError:
        return None
