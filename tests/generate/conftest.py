"""`generate(...)`: the command as people type it, on a machine that knows of no cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qserve.cli.root import qserve

Generate = Callable[..., Result]
SHOP = """
import qserve as serve

@serve.deployment(graceful_shutdown_timeout_s=45)
class Search:
    def __call__(self, text):
        return text

@serve.deployment(graceful_shutdown_timeout_s=120)
class Rank:
    def __init__(self, search):
        pass
    def __call__(self, text):
        return text

app = Rank.bind(Search.bind())
"""
CLEAN = dict.fromkeys(("QSERVE_REDIS_URL", "QSERVE_NAMESPACE", "QSERVE_SECRET_KEY", "QSERVE_SECRET_KEY_FILE"))


@pytest.fixture
def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    """`generate("compose", "--gpus", "1")` in an empty folder that holds one module, generated_shop."""
    (tmp_path / "generated_shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda *arguments: CliRunner(env=CLEAN).invoke(qserve, ["generate", *arguments])
