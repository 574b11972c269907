"""`qserve broker run`: a server in the foreground, whose data stays."""

from __future__ import annotations

import signal

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.cluster import eventually


@pytest.fixture
def place(folder, request):
    """A data folder of the test's own."""
    return folder / f"d{abs(hash(request.node.name)) % 10**8}"


@pytest.fixture
def broker(start, place):
    """A broker that answers."""
    command = start("broker", "run", "--data-dir", str(place))
    command.says("export QSERVE_NAMESPACE=")
    return command


@pytest.fixture
def client(place, broker):
    """A connection to it."""
    with redis.Redis(unix_socket_path=str(place / "q.sock"), retry=Retry(NoBackoff(), 0)) as connected:
        yield connected


def test_it_prints_the_lines_for_other_terminals(broker, place):
    """Copied, or evaluated by a script: nothing but the lines is on stdout."""
    assert broker.out == f"export QSERVE_REDIS_URL=unix://{place}/q.sock\nexport QSERVE_NAMESPACE=default\n"


def test_the_socket_is_for_its_user_only(broker, place):
    """Calls of a local broker are not signed: who reaches the socket can run code."""
    assert (place / "q.sock").stat().st_mode & 0o077 == 0
    assert place.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_keeps_the_data(start, place, broker, client, number):
    """Waiting calls outlive a reboot of the laptop."""
    client.set("waiting", "call")
    broker.signal(number)
    assert broker.ended() == 0

    again = start("broker", "run", "--data-dir", str(place))
    again.says("export")
    assert client.get("waiting") == b"call"


def test_a_second_one_in_the_same_folder_is_refused_and_harms_nothing(start, place, broker, client):
    """The second would silently take the socket over, and both would write to the same file."""
    pid = client.info("server")["process_id"]
    second = start("broker", "run", "--data-dir", str(place))

    assert second.ended() == 75
    assert f"Another broker already runs in {place}" in second.err
    assert client.info("server")["process_id"] == pid


def test_it_says_when_the_server_ends_by_itself(broker, client, place):
    """Out of memory, a full disk: the terminal must not go on as if it served."""
    client.shutdown(nosave=True)

    assert broker.ended() == 69
    assert f"The broker in {place} ended by itself" in broker.err


def test_the_server_ends_with_a_killed_command(broker, client):
    """kill -9 of the terminal leaves no server that nobody knows of."""
    broker.process.kill()
    broker.process.wait()

    def is_gone() -> bool:
        try:
            return not client.ping()
        except redis.ConnectionError:
            return True

    eventually(is_gone, what="the server has ended")
