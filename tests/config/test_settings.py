"""The environment: read once, in one place, and refused where it is wrong."""

import os
from pathlib import Path

import pytest

from qserve.config import Settings
from qserve.errors import SettingsError

KEY, OLDER = "k" * 16, "o" * 32


def test_nothing_needs_to_be_set():
    """A script on a laptop runs without any."""
    assert Settings.from_env({}) == Settings(redis_url=None, namespace="default", secrets=(), insecure=False)


def test_every_variable_is_read():
    """The names stand in the documentation."""
    env = {
        "QSERVE_REDIS_URL": "redis://localhost:6379/1",
        "QSERVE_NAMESPACE": "staging",
        "QSERVE_SECRET_KEY": KEY,
        "QSERVE_INSECURE": "1",
        "QSERVE_LOG_LEVEL": "debug",
        "QSERVE_LOG_FORMAT": "json",
        "QSERVE_BROKER_BINARY": "/usr/bin/valkey-server",
        "QSERVE_DATA_DIR": "/var/lib/qserve",
        "XDG_RUNTIME_DIR": "/run/user/1000",
        "QSERVE_UVLOOP": "0",
    }

    assert Settings.from_env(env) == Settings(
        redis_url="redis://localhost:6379/1",
        namespace="staging",
        secrets=(KEY.encode(),),
        insecure=True,
        log_level="DEBUG",
        log_format="json",
        broker_binary="/usr/bin/valkey-server",
        data_dir="/var/lib/qserve",
        runtime_dir="/run/user/1000",
        uvloop=False,
    )


def test_a_variable_that_is_empty_is_not_set():
    """`QSERVE_REDIS_URL= script.py` and an empty line in an env file are how people unset one."""
    names = ["QSERVE_REDIS_URL", "QSERVE_SECRET_KEY", "QSERVE_SECRET_KEY_FILE", "QSERVE_INSECURE", "QSERVE_DATA_DIR"]
    names += ["QSERVE_BROKER_BINARY", "QSERVE_LOG_LEVEL", "QSERVE_UVLOOP"]

    assert Settings.from_env(dict.fromkeys(names, "")) == Settings()


@pytest.mark.parametrize("text", ["1", "true", "YES", " on "])
def test_a_flag_is_set_in_many_words(text: str):
    """People write what they are used to from other tools."""
    assert Settings.from_env({"QSERVE_INSECURE": text}).insecure


@pytest.mark.parametrize("text", ["0", "false", "No", "off", ""])
def test_a_flag_is_unset_in_many_words(text: str):
    """`QSERVE_INSECURE=false` must not mean the opposite because it is not empty."""
    assert not Settings.from_env({"QSERVE_INSECURE": text}).insecure


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"QSERVE_INSECURE": "maybe"}, "QSERVE_INSECURE='maybe': write 1 or 0"),
        ({"QSERVE_UVLOOP": "2"}, "QSERVE_UVLOOP='2': write 1 or 0"),
        ({"QSERVE_NAMESPACE": ""}, "QSERVE_NAMESPACE"),
        ({"QSERVE_NAMESPACE": "a:b"}, "'a:b'.*QSERVE_NAMESPACE"),
        ({"QSERVE_NAMESPACE": "a{b}"}, "QSERVE_NAMESPACE"),
        ({"QSERVE_LOG_LEVEL": "loud"}, "'LOUD'.*QSERVE_LOG_LEVEL"),
        ({"QSERVE_LOG_FORMAT": "xml"}, "'xml'.*QSERVE_LOG_FORMAT"),
        ({"QSERVE_SECRET_KEY": "short"}, "Secret key number 1 has fewer than 16 bytes. `qserve secret new`"),
        ({"QSERVE_SECRET_KEY": f"{KEY},short"}, "Secret key number 2 has fewer than 16 bytes"),
        ({"QSERVE_SECRET_KEY_FILE": "/nowhere/key"}, "QSERVE_SECRET_KEY_FILE='/nowhere/key' cannot be read"),
    ],
    ids=lambda value: "=".join(*value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused_by_name(env: dict[str, str], text: str):
    """The message names the variable: it was set in another file, by another person, last year."""
    with pytest.raises(SettingsError, match=text):
        Settings.from_env(env)


def test_a_secret_is_never_shown_by_a_message():
    """Messages end in logs that more people read than may know the secret."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"QSERVE_SECRET_KEY": "hush"})

    assert "hush" not in str(caught.value)
    assert KEY not in repr(Settings.from_env({"QSERVE_SECRET_KEY": KEY}))


@pytest.mark.parametrize("between", [",", "\n", " , ", "\r\n", ",\n,"], ids=repr)
def test_a_ring_of_secrets_is_read_newest_first(between: str):
    """The first signs, all verify: that is how a secret is changed without a stop."""
    secrets = Settings.from_env({"QSERVE_SECRET_KEY": f"{KEY}{between}{OLDER}\n"}).secrets

    assert secrets == (KEY.encode(), OLDER.encode())


def test_a_ring_of_secrets_is_read_from_a_file(tmp_path: Path):
    """Docker and Kubernetes hand secrets over as files; the file wins over the variable."""
    file = tmp_path / "secret"
    file.write_text(f"{KEY}\n{OLDER}\n")

    assert Settings.from_env({"QSERVE_SECRET_KEY_FILE": str(file), "QSERVE_SECRET_KEY": "x" * 16}).secrets == (
        KEY.encode(),
        OLDER.encode(),
    )


@pytest.mark.parametrize("content", [b"", b" \n,\n"], ids=["empty", "blank"])
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: bytes):
    """A mount that went wrong must not turn a signed cluster into an unsigned one."""
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"holds no key\. `qserve secret new` prints one"):
        Settings.from_env({"QSERVE_SECRET_KEY_FILE": str(file)})


def test_a_file_of_raw_bytes_is_refused(tmp_path: Path):
    """`head -c 32 /dev/urandom > secret` makes a file that no environment variable could hold."""
    file = tmp_path / "secret"
    file.write_bytes(b"\xff\xfe" * 16)
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.from_env({"QSERVE_SECRET_KEY_FILE": str(file)})


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(
            redis_url="rediss://user:p%40ss@host/2",
            namespace="staging",
            secrets=(KEY.encode(), OLDER.encode()),
            insecure=True,
            log_level="INFO",
            log_format="json",
            uvloop=False,
        ),
    ],
    ids=["defaults", "all"],
)
def test_a_child_process_reads_the_same_settings(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Workers and replicas must find the same cluster with the same secret, whatever else the environment says."""
    for name in [name for name in os.environ if name.startswith(("QSERVE_", "XDG_RUNTIME_DIR"))]:
        monkeypatch.delenv(name)
    (tmp_path / "other").write_text("x" * 16)
    monkeypatch.setenv("QSERVE_SECRET_KEY_FILE", str(tmp_path / "other"))
    monkeypatch.setenv("QSERVE_NAMESPACE", "elsewhere")
    monkeypatch.setenv("KEPT", "as it is")
    env = settings.child_env()

    assert Settings.from_env(env) == settings
    assert env["KEPT"] == "as it is"
