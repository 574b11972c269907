"""A connection that comes back by itself, until it is closed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qserve.errors import BrokerDenied, BrokerUnavailable
from qserve.store.connection import Endpoint, endpoint_of
from qserve.store.link import Link
from qserve.store.scripts import PUT
from tests.store.odd import OK, odd_server
from tests.store.until import until
from tests.support.refusing import refusing_server


@pytest.fixture
async def link(settings) -> AsyncIterator[Link]:
    """A link that has not started."""
    made = Link(endpoint_of(settings), f"test-{settings.namespace}")
    yield made
    await made.close()


async def test_the_first_call_opens_the_connection(link):
    """Nobody has to remember to start it."""
    assert await link.call("ECHO", "hello") == b"hello"


async def test_a_killed_connection_comes_back(link, server, settings):
    """A restart, a failover, an operator's CLIENT KILL: the next call goes through as if nothing had been."""
    pipe = await link.ready()
    kill(server, settings)
    await until(lambda: link.pipe is not pipe, what="the loss is noticed")

    assert await link.call("ECHO", "again") == b"again"


async def test_a_call_under_way_hears_of_the_loss(link, server, settings):
    """Whether it was done is not known: only the caller knows whether sending it again does harm."""
    waiting = (await link.ready()).call("BLPOP", f"{settings.namespace}-none", 30)
    await until(lambda: any("b" in client["flags"] for client in ours(server, settings)))
    kill(server, settings)

    with pytest.raises(BrokerUnavailable):
        await waiting


async def test_each_new_connection_is_prepared_before_anybody_uses_it(settings, server):
    """A subscription must stand before the first call is sent, or its reply could be missed."""
    order: list[str] = []

    async def on_up(pipe):
        await pipe.call("PING")
        order.append("up")

    link = Link(
        endpoint_of(settings), f"test-{settings.namespace}", on_up=on_up, on_down=lambda _: order.append("down")
    )
    await link.ready()
    order.append("used")
    kill(server, settings)
    await until(lambda: "down" in order)
    await link.ready()
    order.append("used")
    await link.close()

    assert order == ["up", "used", "down", "up", "used"]


async def test_a_connection_that_cannot_be_prepared_is_opened_anew(settings):
    """A server that goes away just then must not leave half a connection in use."""
    tries: list[str] = []

    async def on_up(pipe):
        tries.append("up")
        if len(tries) < 3:
            raise BrokerUnavailable("not yet")

    link = Link(endpoint_of(settings), "test", on_up=on_up)
    assert await link.call("ECHO", "hello") == b"hello"
    await link.close()

    assert len(tries) == 3


async def test_a_server_that_is_not_there_is_named_with_its_mend():
    """The message ends in somebody's terminal: which server, why, and what to do, but not the password."""
    link = Link(Endpoint("127.0.0.1", 1, username="u", password="hunter2"), "test")

    with pytest.raises(BrokerUnavailable) as caught:
        await link.ready(timeout_s=0.05)
    await link.close()

    text = str(caught.value)
    assert "redis://u:***@127.0.0.1:1/0 cannot be reached: " in text
    assert "Start it, or point QSERVE_REDIS_URL at the one that runs" in text
    assert "hunter2" not in text


async def test_a_server_that_says_nothing_is_waited_for_as_long_as_was_asked():
    """The reason is not known yet; the caller's time is up all the same."""
    async with odd_server() as odd:
        link = Link(odd.endpoint, "test")
        with pytest.raises(BrokerUnavailable, match=r"no answer in 0.05 s"):
            await link.ready(timeout_s=0.05)
        await link.close()


async def test_wrong_credentials_are_told_as_such(settings):
    """Waiting would not mend them."""
    link = Link(Endpoint(path=endpoint_of(settings).path, username="nobody", password="wrong"), "test")

    with pytest.raises(BrokerDenied, match="WRONGPASS"):
        await link.ready(timeout_s=0.1)
    await link.close()


async def test_a_server_that_comes_later_is_found():
    """Everything may be started in any order."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "late.sock")
        link = Link(Endpoint(path=path), "test")
        link.start()
        await until(lambda: link.error is not None)

        async with odd_server(OK, path=path):
            await link.ready()
            await link.close()


async def test_closing_before_the_start_or_twice_is_closed(settings):
    """A door that failed to open is closed like any other."""
    link = Link(endpoint_of(settings), "test")
    await link.close()
    await link.close()

    with pytest.raises(BrokerUnavailable, match="was closed"):
        await link.ready()


async def test_closing_ends_the_attempts_to_connect():
    """A process that ends must not be held by a server that never comes."""
    link = Link(Endpoint("127.0.0.1", 1), "test")
    waiting = asyncio.ensure_future(link.ready())
    await until(lambda: link.error is not None)

    await link.close()

    with pytest.raises(BrokerUnavailable, match="was closed"):
        await waiting


async def test_an_unforeseen_error_does_not_end_the_link(settings):
    """A mistake in one preparation is reported; the next use tries again."""
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    broken = [True]

    async def on_up(pipe):
        if broken.pop() if broken else False:
            raise ZeroDivisionError

    link = Link(endpoint_of(settings), "test", on_up=on_up)
    with pytest.raises(BrokerUnavailable):
        await link.ready(timeout_s=0.05)
    assert await link.call("ECHO", "hello") == b"hello"
    await link.close()


async def test_a_server_that_takes_connections_and_drops_them_is_knocked_at_with_growing_pauses():
    """A server that loads its data refuses each client: all of them at full speed would keep it from loading."""
    async with refusing_server() as refusing:

        def ask(pipe):
            asyncio.get_running_loop().call_soon(
                lambda: pipe.script(PUT, ["k"]).add_done_callback(asyncio.Future.exception)
            )

        link = Link(Endpoint(path=refusing.path), "test", on_up=ask)
        link.start()
        await until(lambda: len(refusing.connected_at) == 6)
        await link.close()

        assert refusing.connected_at[5] - refusing.connected_at[0] > 0.1


def ours(server, settings):
    """The link's connections, as the server sees them."""
    return [client for client in server.client_list() if client["name"] == f"test-{settings.namespace}"]


def kill(server, settings):
    """Kill the link's connections, as an operator would."""
    for client in ours(server, settings):
        server.client_kill_filter(_id=client["id"])
