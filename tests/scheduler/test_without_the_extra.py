"""Where arq and cronsim are not installed: the error has the command that mends it, and all else works."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from click.testing import CliRunner

import qserve as serve
from qserve.cli.root import qserve
from qserve.errors import MissingExtra
from qserve.handle import DeploymentHandle

pytestmark = pytest.mark.skipif(find_spec("arq") is not None, reason="the extra [scheduler] is installed")


def test_registering_says_how_to_install(settings):
    """A web backend registers its recurring calls, and lacks what reads their times."""
    with pytest.raises(MissingExtra, match="pip install cronsim"):
        serve.cron("* * * * *", DeploymentHandle("Echo", "app"))


def test_a_scheduler_says_how_to_install(settings, monkeypatch):
    """One line, no traceback."""
    for name, value in settings.child_env().items():
        if name.startswith("QSERVE_"):
            monkeypatch.setenv(name, value)

    done = CliRunner().invoke(qserve, ["scheduler"], catch_exceptions=False)

    assert done.exit_code == 1
    assert "pip install 'qserve[cli,scheduler]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_listing_and_removing_need_nothing(settings):
    """An operator's laptop."""
    assert serve.crons() == []
    assert not serve.uncron("tidy")
