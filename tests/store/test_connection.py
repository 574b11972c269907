"""URLs, and what may be done at their other end."""

from __future__ import annotations

import logging
from string import ascii_letters, digits
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.config import Settings
from qserve.errors import BrokerDenied, BrokerRefused, BrokerUnavailable, SecretRequired, SettingsError
from qserve.store import connection
from qserve.store.connection import Endpoint, endpoint_of, parse_url, refused

SECRET = b"a secret that signs"
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
names = st.text(ascii_letters + digits + "-", min_size=1, max_size=12).filter(lambda name: name[0] != "-")


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("redis://", Endpoint("localhost", 6379)),
        ("redis://h", Endpoint("h", 6379)),
        ("redis://h:7000/3", Endpoint("h", 7000, db=3)),
        ("redis://h?db=3", Endpoint("h", 6379, db=3)),
        ("valkey://h", Endpoint("h", 6379)),
        ("rediss://h", Endpoint("h", 6379, tls=True)),
        ("valkeys://h?ssl_ca_certs=/ca.pem", Endpoint("h", tls=True, tls_options={"ssl_ca_certs": "/ca.pem"})),
        ("redis://:p@h", Endpoint("h", password="p")),
        ("redis://u:p%40%2F@h", Endpoint("h", username="u", password="p@/")),
        ("redis://h?username=u&password=100%2525", Endpoint("h", username="u", password="100%25")),
        ("redis://[::1]:7000", Endpoint("::1", 7000)),
        ("unix:///run/q.sock", Endpoint(path="/run/q.sock")),
        ("unix://u:p@/run/q.sock?db=2", Endpoint(path="/run/q.sock", db=2, username="u", password="p")),
        ("unix:///a%20folder/q.sock", Endpoint(path="/a folder/q.sock")),
        ("redis+sentinel://a:1,b:2/main/4", Endpoint(sentinels=(("a", 1), ("b", 2)), service="main", db=4)),
        ("redis+sentinel://u:p@a,b/main", Endpoint(
            sentinels=(("a", 26379), ("b", 26379)), service="main", username="u", password="p"
        )),
    ],
)  # fmt: skip
def test_urls_are_read_as_every_client_reads_them(url, endpoint):
    """A URL that works with redis-cli or redis-py works here."""
    assert parse_url(url) == endpoint


@given(user=names, password=texts, host=names, port=st.integers(1, 65535), db=st.integers(0, 15))
def test_credentials_survive_quoting(user, password, host, port, db):
    """Whatever the password holds, percent-encoded it arrives as it is."""
    endpoint = parse_url(f"redis://{user}:{quote(password, safe='')}@{host}:{port}/{db}")

    assert endpoint == Endpoint(host.lower(), port, db=db, username=user, password=password)


@given(host=names | st.just("::1"), port=st.integers(1, 65535), db=st.integers(0, 15), tls=st.booleans())
def test_what_is_shown_can_be_read_back(host, port, db, tls):
    """People copy the address from an error message into QSERVE_REDIS_URL."""
    endpoint = Endpoint(host.lower(), port, db=db, tls=tls)

    assert parse_url(str(endpoint)) == endpoint


# Nothing else in a message has a Z in it.
passwords = st.text(st.sampled_from("Z:/?#[]@!%=&+"), min_size=1, max_size=8).filter(lambda text: "Z" in text)


@given(
    password=passwords,
    form=st.sampled_from(
        [
            "redis://user:{}@host:6379/0",
            "redis://:{}@host/0",
            "unix://:{}@/run/q.sock",
            "redis+sentinel://:{}@host:1/main/0",
            "redis+sentinel://:{}@host:1",
            "redis://host/x?password={}",
            "redis://user:{}@host:port/0",
            "http://user:{}@host",
            "user:{}@host",
            "redis://user:{}@host:6379/zero",
        ]
    ),
)
def test_no_password_is_ever_shown(password, form):
    """Messages end in logs, tickets and chats, also those about a URL that is not written as it should be."""
    try:
        shown = f"{parse_url(form.format(password))} {parse_url(form.format(password))!r}"
    except SettingsError as error:
        shown = f"{error} {error.__cause__} {error.__context__ if not error.__suppress_context__ else ''}"

    assert "Z" not in shown.replace("ssl_", "")


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("http://h", "scheme 'http'.*redis://host:6379/0"),
        ("", "scheme ''"),
        ("localhost:6379", "scheme 'localhost'"),
        ("redis://h:port", "port and the number of the database"),
        ("redis://h/zero", "port and the number of the database"),
        ("redis://[::1", "cannot be read"),
        ("redis://u:a/b@h:7000/0", "percent-encoded"),
        ("redis://u:a?b@h:7000/0", "percent-encoded"),
        ("redis://u:a#b@h:7000/0", "percent-encoded"),
        ("unix://u:a/b@/run/q.sock", "percent-encoded"),
        ("redis+sentinel://a:1", "names no service: redis\\+sentinel://host:26379/mymaster/0"),
    ],
)
def test_a_url_that_cannot_be_read_says_what_is_wrong(url, names):
    """The first thing that a new user gets wrong."""
    with pytest.raises(SettingsError, match=names):
        parse_url(url)


@pytest.mark.parametrize("url", ["unix:///q.sock", "redis://localhost", "redis://127.0.0.1", "redis://[::1]"])
def test_unsigned_calls_are_allowed_where_nobody_else_is(url, caplog):
    """The first steps need no key; once, and not for every connection, it is said that calls are not signed."""
    connection._warn_unsigned.cache_clear()
    with caplog.at_level(logging.WARNING):
        endpoint_of(Settings(redis_url=url))
        endpoint_of(Settings(redis_url=url))

    assert [record.message for record in caplog.records if "not signed" in record.message] == [
        f"Calls through {parse_url(url)} are not signed: set QSERVE_SECRET_KEY (`qserve secret new` makes one)."
    ]


@pytest.mark.parametrize("url", ["redis://10.0.0.1", "rediss://redis.example.com", "redis+sentinel://localhost/main"])
def test_a_network_needs_a_key(url):
    """Calls are pickled: whoever writes to that Redis runs code here."""
    with pytest.raises(SecretRequired, match="QSERVE_SECRET_KEY is not set"):
        endpoint_of(Settings(redis_url=url))

    assert endpoint_of(Settings(redis_url=url, secrets=(SECRET,))) == parse_url(url)
    assert endpoint_of(Settings(redis_url=url, insecure=True)) == parse_url(url)


def test_without_a_url_it_is_said_how_to_get_a_cluster():
    """A handle was used before anything was deployed."""
    with pytest.raises(SettingsError, match=r"call serve\.run\(\.\.\.\) first"):
        endpoint_of(Settings())


@pytest.mark.parametrize(
    ("answer", "kind", "mend"),
    [
        ("WRONGPASS invalid username-password pair", BrokerDenied, "Put user and password into QSERVE_REDIS_URL"),
        ("NOAUTH Authentication required.", BrokerDenied, "Put user and password into QSERVE_REDIS_URL"),
        ("NOPERM this user has no permissions", BrokerDenied, "Give this user the permission"),
        ("OOM command not allowed", BrokerRefused, "at its maxmemory"),
        ("WRONGTYPE Operation against a key", BrokerRefused, "WRONGTYPE"),
        ("READONLY You can't write against a read only replica.", BrokerUnavailable, "cannot take commands now"),
        ("LOADING Redis is loading the dataset in memory", BrokerUnavailable, "cannot take commands now"),
        ("MASTERDOWN Link with MASTER is down", BrokerUnavailable, "cannot take commands now"),
        ("UNBLOCKED force unblock", BrokerUnavailable, "cannot take commands now"),
        ("CLUSTERDOWN The cluster is down", BrokerUnavailable, "cannot take commands now"),
    ],
)
def test_what_the_server_says_is_told_with_its_mend(answer, kind, mend):
    """A failover passes by itself, a wrong password does not: the caller must be able to tell."""
    error = refused(Endpoint("h", password="hunter2"), RuntimeError(answer))

    assert type(error) is kind
    assert mend in str(error)
    assert "hunter2" not in str(error)


def test_tls_checks_who_answers():
    """Encryption without it would protect from listeners only."""
    context = parse_url("rediss://h").ssl_context()

    assert context is not None
    assert context.check_hostname
    assert parse_url("redis://h").ssl_context() is None
