"""Units for systemd: they drain, come back, and give user code no more than it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from qserve.errors import UsageError
from qserve.generate import Place, Stack, pools_of, systemd

HERE = Place(venv=sys.prefix)
# systemd 254 brought them; older ones pass them over, with a line in the log.
NEWER = ("RestartSteps", "RestartMaxDelaySec")


def settings(unit: str) -> dict[str, str]:
    """A unit's assignments; of those that stand several times the last."""
    lines = [line for line in unit.splitlines() if line and line[0] not in "#["]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize(
    "stack",
    [
        Stack(),
        Stack(gpus=1, cpus=1.5, memory_mib=1536, schedulers=2),
        Stack(pools=pools_of([["a.B"], ["c d"]])),
        Stack(app="a:b", replicas={"C": 1}, redis_url="redis://r:pw@host/0"),
    ],
    ids=["defaults", "resources", "pools", "fixed"],
)
@pytest.mark.slow
def test_systemd_itself_finds_nothing_wrong(stack, tmp_path):
    """The last word on what a unit means is systemd's: a setting that it does not know is not in force."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    units = {name: text for name, text in systemd(stack, HERE).items() if name.endswith(".service")}
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    checked = subprocess.run(
        [program, "verify", *(str(tmp_path / name) for name in units)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in checked.stderr.splitlines() if str(tmp_path) in line or "qserve" in line]
    assert [line for line in complaints if not any(key in line for key in NEWER)] == []
    assert checked.returncode == 0, checked.stderr


def test_a_worker_is_asked_and_given_time():
    """TERM to all its processes would end replicas in mid-call; KILL after the default 90 s would cut long calls."""
    unit = settings(systemd(Stack(grace_s=130), HERE)["qserve-worker@.service"])
    assert (unit["KillMode"], unit["KillSignal"], unit["TimeoutStopSec"]) == ("mixed", "SIGTERM", "130")


def test_a_replica_out_of_memory_does_not_end_its_worker():
    """systemd's default stops the whole unit: one greedy replica would take all others of the host with it."""
    unit = settings(systemd(Stack(memory_mib=2048), HERE)["qserve-worker@.service"])
    assert unit["OOMPolicy"] == "continue"
    assert unit["MemoryMax"] == "2048M"


def test_units_come_back_unless_a_person_has_to_mend_them():
    """A restart mends a lost server, and never a wrong key: endless tries would only hide its message."""
    for unit in (settings(text) for name, text in systemd(Stack(), HERE).items() if name.endswith(".service")):
        assert (unit["Restart"], unit["StartLimitIntervalSec"]) == ("always", "0")
        assert unit["RestartPreventExitStatus"].split() == ["2", "77", "78"]


def test_the_key_is_a_credential_and_not_in_the_environment_file():
    """`systemctl show` prints environments; credentials are files that only the unit sees."""
    files = systemd(Stack(), HERE)
    unit = settings(files["qserve-worker@.service"])
    assert unit["LoadCredential"] == "secret.key:/etc/qserve/secret.key"
    assert "QSERVE_SECRET_KEY_FILE=%d/secret.key" in unit["Environment"]
    assert "QSERVE_SECRET_KEY" not in settings(files["qserve.env"])
    assert "0600" in files["qserve.env"]


def test_devices_are_visible_only_to_workers_with_gpus():
    """PrivateDevices hides the GPUs, too."""
    assert settings(systemd(Stack(), HERE)["qserve-worker@.service"])["PrivateDevices"] == "yes"
    assert settings(systemd(Stack(gpus=1), HERE)["qserve-worker@.service"])["PrivateDevices"] == "no"


def test_a_server_that_is_there_needs_no_advice():
    """valkey.conf is for the Valkey of this host."""
    assert "valkey.conf" in systemd(Stack())
    assert "valkey.conf" not in systemd(Stack(redis_url="redis://host/0"))


def test_paths_are_whole():
    """systemd refuses others, long after the files were copied."""
    with pytest.raises(UsageError, match="begin with /"):
        Place(venv="venv")
