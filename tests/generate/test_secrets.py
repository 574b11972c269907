"""Generated files go into repositories and tickets."""

from __future__ import annotations

import pytest

from tests.generate.variants import PASSWORD, TEXTS


@pytest.mark.parametrize("name", TEXTS)
def test_no_file_holds_a_password(name):
    """A file in a repository is read by more people than the server's password is meant for."""
    assert PASSWORD not in TEXTS[name]


@pytest.mark.parametrize("name", [name for name in TEXTS if name.startswith("password/")])
def test_every_process_still_finds_its_server(name):
    """What is left out must stand somewhere, and the file says where."""
    text = TEXTS[name]
    if "Kind: Deployment" in text or name.endswith(("worker.yaml", "autoscaler.yaml")):
        assert "key: redis-url" in text
    if name.endswith("docker-compose.yml"):
        assert "${QSERVE_REDIS_URL:?write it into .env}" in text
    if name.endswith("qserve.env"):
        assert "rediss://app:***@redis.internal:6379/0" in text


@pytest.mark.parametrize("name", [name for name in TEXTS if not name.endswith(("qserve.env", "valkey.conf"))])
def test_no_file_holds_a_key(name):
    """The key is a file of its own in each of the three worlds: QSERVE_SECRET_KEY= stands only in a command to copy."""
    lines = [line for line in TEXTS[name].splitlines() if not line.startswith("#")]
    assert not [line for line in lines if "QSERVE_SECRET_KEY=" in line or "QSERVE_SECRET_KEY:" in line]
