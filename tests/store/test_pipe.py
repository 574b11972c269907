"""One connection: each caller gets its own reply, whatever happens to the callers beside it."""

from __future__ import annotations

import asyncio
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from qserve.config import Settings
from qserve.errors import BrokerDenied, BrokerRefused, BrokerUnavailable
from qserve.loops import factory
from qserve.store import scripts
from qserve.store.connection import Endpoint, endpoint_of, parse_url
from qserve.store.pipe import Pipe
from tests.store.odd import OK, odd_server
from tests.store.until import until

LARGE = 300 * 1024
UPLOAD = 4 * 1024 * 1024


@pytest.fixture
async def pipe(settings: Settings) -> AsyncIterator[Pipe]:
    """An open connection."""
    opened = await open_pipe(endpoint_of(settings))
    yield opened
    opened.close()


@pytest.fixture
def tcp(server: redis.Redis) -> Iterator[int]:
    """The server's port on the loopback, open for this test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server.config_set("port", port)
    yield port
    server.config_set("port", 0)


@pytest.fixture
def user(server: redis.Redis) -> Iterator[str]:
    """A user with the password `right`, who may read and say hello."""
    server.execute_command("ACL", "SETUSER", "tester", "on", ">right", "~*", "&*", "-@all", "+echo", "+client|setname")
    yield "tester"
    server.acl_deluser("tester")


# Replies


async def test_replies_come_in_the_order_of_the_commands(pipe):
    """Nothing in a reply says what it answers: the order is all there is."""
    replies = await asyncio.gather(*(pipe.call("ECHO", str(number)) for number in range(1000)))

    assert replies == [str(number).encode() for number in range(1000)]


@pytest.mark.parametrize("uvloop", [False, True])
def test_callers_that_give_up_leave_the_others_their_replies(settings, uvloop):
    """One reply off, and every later caller gets somebody else's data: this has happened to others, in public."""
    chance = random.Random(7)  # noqa: S311 (repeatable, no secret)

    async def ask(pipe: Pipe, number: int) -> bytes:
        reply: bytes = await pipe.call("ECHO", str(number))
        return reply

    async def give_up(asking: asyncio.Task[bytes]) -> None:
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        asking.cancel()

    async def run() -> tuple[int, int]:
        pipe = await open_pipe(endpoint_of(settings))
        asked = [asyncio.create_task(ask(pipe, number)) for number in range(2000)]
        leaving = [asyncio.create_task(give_up(task)) for task in chance.sample(asked, 1000)]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.gather(*leaving)
        given_up = sum(isinstance(reply, asyncio.CancelledError) for reply in replies)
        wrong = sum(isinstance(r, bytes) and r != str(number).encode() for number, r in enumerate(replies))
        assert await ask(pipe, 4711) == b"4711"
        pipe.close()
        return given_up, wrong

    loop_factory = factory(Settings(uvloop=uvloop))
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        given_up, wrong = runner.run(run())

    assert wrong == 0
    assert given_up > 500


async def test_a_command_that_is_refused_shifts_nothing(pipe):
    """An error is a reply like any other."""
    before, bad, after = pipe.call("ECHO", "a"), pipe.call("NO-SUCH-COMMAND"), pipe.call("ECHO", "b")

    with pytest.raises(BrokerRefused, match="unknown command"):
        await bad
    assert [await before, await after] == [b"a", b"b"]


async def test_large_arguments_arrive_whole_among_small_ones(pipe):
    """They are written in pieces of their own, which must not change their order or their bytes."""
    large = random.Random(1).randbytes(LARGE)  # noqa: S311 (repeatable, no secret)

    replies = await asyncio.gather(*(pipe.call("ECHO", text) for text in (b"small", large, b"", large, b"last")))

    assert replies == [b"small", large, b"", large, b"last"]


async def test_messages_do_not_disturb_replies(settings, pipe):
    """A subscriber gets both over one connection."""
    heard: list[bytes] = []
    subscriber = await open_pipe(endpoint_of(settings), on_message=heard.append)
    await subscriber.call("SUBSCRIBE", f"{settings.namespace}-channel")
    for number in range(3):
        await pipe.call("PUBLISH", f"{settings.namespace}-channel", number)

    assert await subscriber.call("PING") == [b"pong", b""]
    assert heard == [b"0", b"1", b"2"]
    subscriber.close()


# Scripts


async def test_a_server_that_lost_its_scripts_is_sent_the_source(pipe, server, keys):
    """A restart, a failover or a SCRIPT FLUSH forgets them all; nobody may notice."""
    server.script_flush()
    assert await pipe.script(scripts.RETIRE, queue_of(keys)) == 1
    server.script_flush()

    together = [pipe.script(scripts.RETIRE, queue_of(keys)) for _ in range(5)]
    assert await asyncio.gather(*together, pipe.call("ECHO", "after")) == [1] * 5 + [b"after"]


async def test_a_script_s_error_is_the_server_s(pipe, keys, server):
    """Its first word decides what is done about it."""
    server.set(keys.calls, "junk")

    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        await pipe.script(scripts.RETIRE, queue_of(keys))
    server.delete(keys.calls)


# Opening


async def test_tcp_and_a_database_of_one_s_own(tcp, server):
    """Small installations share a server by its databases."""
    pipe = await open_pipe(parse_url(f"redis://127.0.0.1:{tcp}/3"))
    await pipe.call("SET", "where", "here")

    assert server.get("where") is None
    assert await pipe.call("GETDEL", "where") == b"here"
    pipe.close()


async def test_a_user_with_the_right_password_is_let_in(settings, user):
    """The credentials stand in the URL."""
    endpoint = endpoint_of(settings)
    pipe = await open_pipe(Endpoint(path=endpoint.path, username=user, password="right"))

    assert await pipe.call("ECHO", "hello") == b"hello"
    pipe.close()


async def test_a_wrong_password_says_so_and_does_not_show_it(settings, user):
    """Not "cannot be reached": that would send people looking at their network."""
    endpoint = Endpoint(path=endpoint_of(settings).path, username=user, password="wrong-one")

    with pytest.raises(BrokerDenied, match=r"WRONGPASS.*Put user and password into QSERVE_REDIS_URL") as caught:
        await open_pipe(endpoint)
    assert "wrong-one" not in str(caught.value)


async def test_what_a_user_may_not_do_is_named(settings, user):
    """A user with too few rights is found out by its first call, not by silence."""
    endpoint = Endpoint(path=endpoint_of(settings).path, username=user, password="right")
    pipe = await open_pipe(endpoint)

    with pytest.raises(BrokerDenied, match="NOPERM"):
        await pipe.call("GET", "anything")
    pipe.close()


async def test_a_server_that_is_not_there_is_named_with_the_mend(tmp_path):
    """The commonest error of a first run."""
    with pytest.raises(BrokerUnavailable, match=r"Redis at unix://.*cannot be reached: .*Start it, or point"):
        await open_pipe(Endpoint(path=str(tmp_path / "none.sock")))


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "no-such-host.invalid"])
async def test_a_host_that_cannot_be_is_a_server_that_is_not_there(host):
    """A typo in the URL must not end in an error of Python's codecs."""
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await open_pipe(Endpoint(host))


# Losing it


async def test_a_server_that_never_answers_is_given_up():
    """It accepts connections and is stuck: without a limit the first call would hang for ever."""
    async with odd_server() as odd:
        with pytest.raises(BrokerUnavailable, match="no answer for"):
            await open_pipe(odd.endpoint, silence_s=0.02)


async def test_a_server_that_stops_answering_is_given_up():
    """A network that drops packets without a word: nobody closes the connection for us."""
    lost: list[Exception] = []
    async with odd_server(OK) as odd:
        pipe = await open_pipe(odd.endpoint, silence_s=0.02, on_lost=lost.append)

        with pytest.raises(BrokerUnavailable, match="no answer for"):
            await pipe.call("PING")
        assert len(lost) == 1


async def test_a_subscriber_asks_whether_the_server_is_still_there():
    """It is owed no reply: half-open, it would just hear no more, and every call would wait for the next sweep."""
    lost: list[Exception] = []
    subscribed = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
    pong = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
    async with odd_server(OK, subscribed, pong) as odd:
        pipe = await open_pipe(odd.endpoint, silence_s=0.02, on_lost=lost.append, on_message=print)
        await pipe.call("SUBSCRIBE", "c")

        await until(lambda: lost, what="the silent server is given up")

    assert odd.heard.count(b"PING") == 2
    assert "no answer for" in str(lost[0])


async def test_a_server_that_takes_a_long_upload_is_not_silent():
    """A large argument over a slow line takes longer than any silence: given up, it would be sent again for ever."""
    async with slow_server(takes_all=True) as endpoint:
        pipe = await open_pipe(endpoint, silence_s=0.1)

        assert await pipe.call("SET", "large", bytes(UPLOAD)) == b"OK"
        pipe.close()


async def test_a_server_that_stops_in_the_middle_of_an_upload_is_given_up():
    """Bytes that are still on our side are no sign of life."""
    async with slow_server(takes_all=False) as endpoint:
        pipe = await open_pipe(endpoint, silence_s=0.1)

        with pytest.raises(BrokerUnavailable, match="no answer for"):
            await pipe.call("SET", "large", bytes(UPLOAD))


async def test_a_connection_without_a_debt_may_be_silent():
    """Idle is not dead: a client that makes a call a minute must not connect anew for each."""
    lost: list[Exception] = []
    async with odd_server(OK, b"+PONG\r\n") as odd:
        pipe = await open_pipe(odd.endpoint, silence_s=0.01, on_lost=lost.append)
        waited = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, waited.set)
        await waited.wait()

        assert await pipe.call("PING") == b"PONG"
        assert lost == []
        pipe.close()


async def test_everybody_who_waits_hears_that_the_connection_is_lost():
    """One error each, at once; whoever asks later gets it, too."""
    lost: list[Exception] = []
    async with odd_server(OK, None) as odd:
        pipe = await open_pipe(odd.endpoint, on_lost=lost.append)

        outcomes = await asyncio.gather(*(pipe.call("PING") for _ in range(3)), return_exceptions=True)
        later = await asyncio.gather(pipe.call("PING"), return_exceptions=True)

    assert [type(outcome) for outcome in (*outcomes, *later)] == [BrokerUnavailable] * 4
    assert len(lost) == 1


@pytest.mark.parametrize("answer", [b"-READONLY You can't write against a read only replica.\r\n", b"-LOADING\r\n"])
async def test_a_server_that_cannot_serve_now_is_left(answer):
    """It was the master once. Only connecting again finds the one that is it now."""
    lost: list[Exception] = []
    async with odd_server(OK, answer) as odd:
        pipe = await open_pipe(odd.endpoint, on_lost=lost.append)

        with pytest.raises(BrokerUnavailable, match="cannot take commands now"):
            await pipe.call("SET", "a", "b")
        await until(lambda: lost)


async def test_what_is_no_redis_is_left():
    """A port of something else, or a broken stream: nothing that follows can be trusted."""
    async with odd_server(b"HTTP/1.1 400 Bad Request\r\n") as odd:
        with pytest.raises(BrokerUnavailable, match="cannot be reached"):
            await open_pipe(odd.endpoint)


async def test_closing_twice_is_closed(pipe):
    """Whoever owns a connection may close it without asking whether somebody else has."""
    pipe.close()
    pipe.close()

    with pytest.raises(BrokerUnavailable):
        await pipe.call("PING")


@asynccontextmanager
async def slow_server(*, takes_all: bool) -> AsyncIterator[Endpoint]:
    """A server that reads 64 KiB every 5 ms: all of an upload before it answers, or only its first half."""
    ends = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(OK)
        left = UPLOAD if takes_all else UPLOAD // 2
        while left > 0 and (chunk := await reader.read(64 * 1024)):
            left -= len(chunk)
            await asyncio.sleep(0.005)  # the slow line
        if takes_all:
            writer.write(OK)
        await ends.wait()
        writer.close()

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "slow.sock")
        server = await asyncio.start_unix_server(serve, path)
        try:
            yield Endpoint(path=path)
        finally:
            ends.set()
            server.close()
            await server.wait_closed()


async def open_pipe(endpoint, *, on_lost=None, **options):
    """A connection; nobody minds its end."""
    return await Pipe.open(endpoint, name="test", on_lost=on_lost or (lambda error: None), **options)


def queue_of(keys):
    """The keys of a deployment's queue, as retire.lua takes them."""
    return [keys.calls, keys.front, keys.delayed, keys.asleep]
