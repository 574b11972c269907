"""Where the server is: URLs, their masked form, TLS; and what a server's error means to us.

Sentinel is asked through redis-py, which is imported only then.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from qserve.config import Settings
from qserve.errors import BrokerDenied, BrokerRefused, BrokerUnavailable, SecretRequired, SettingsError, TransportError

logger = logging.getLogger("qserve.store")

_TLS_SCHEMES = frozenset({"rediss", "valkeys"})
_TCP_SCHEMES = frozenset({"redis", "valkey"}) | _TLS_SCHEMES
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# Answers that say "not here, not now": leave the connection, resolve the address again, go on.
_MOVED = ("READONLY", "LOADING", "MASTERDOWN", "UNBLOCKED", "CLUSTERDOWN", "TRYAGAIN", "MISCONF")
CONNECT_TIMEOUT_S = 5.0
_UNREADABLE = (
    "the port and the number of the database must be numbers, and in a user or a password all that is no letter or "
    "digit must be percent-encoded (%40 for @, %2F for /)."
)


class _NoService(ValueError):
    """A Sentinel URL without the name of a service."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server's address and credentials."""

    host: str = "localhost"
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    tls_options: dict[str, str] = field(default_factory=dict)
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""

    @property
    def is_local(self) -> bool:
        """Whether nobody on a network can be at the other end."""
        return bool(self.path) or (not self.sentinels and self.host in _LOOPBACK)

    def __str__(self) -> str:
        user = f"{self.username}:***@" if self.password else ""
        if self.path:
            return f"unix://{user}{self.path}?db={self.db}"
        if self.sentinels:
            hosts = ",".join(f"{host}:{port}" for host, port in self.sentinels)
            return f"redis+sentinel://{user}{hosts}/{self.service}/{self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{user}{host}:{self.port}/{self.db}"

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS with hostname check, by the URL's `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`; None without TLS."""
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.tls_options.get("ssl_ca_certs"))
        if cert := self.tls_options.get("ssl_certfile"):
            context.load_cert_chain(cert, self.tls_options.get("ssl_keyfile"))
        return context


def parse_url(url: str) -> Endpoint:
    """An Endpoint from redis://, rediss://, valkey(s)://, unix:// or redis+sentinel://. Raises SettingsError."""
    try:
        parts = urlsplit(url)
        _refuse_bare_password(parts)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        if parts.scheme == "unix":
            return _unix(parts, query)
        if parts.scheme in _TCP_SCHEMES:
            return _tcp(parts, query)
        if parts.scheme == "redis+sentinel":
            return _sentinel(parts, query)
    except ValueError as error:
        # Neither the text nor the error itself is passed on: they quote the URL, and with it parts of the password.
        reason = error if isinstance(error, _NoService) else _UNREADABLE
        raise SettingsError(f"The Redis URL {_masked(url)!r} cannot be read: {reason}") from None
    raise SettingsError(
        f"The Redis URL {_masked(url)!r} has the scheme {parts.scheme!r}. Use redis://host:6379/0, rediss:// for TLS, "
        "unix:///path/to.sock, or redis+sentinel://host:26379/mymaster/0."
    )


def _refuse_bare_password(parts: SplitResult) -> None:
    """A password with a bare /, ? or # in it ends where the path, the query or the fragment seem to begin.

    What stands before it would be taken for the host, or localhost for lack of one. Raises ValueError.
    """
    in_query = "@" in parts.query and "password=" not in parts.query
    if in_query or "@" in parts.path or parts.fragment:
        raise ValueError("a part of the credentials is not percent-encoded")


def _credentials(parts: SplitResult, query: dict[str, str]) -> dict[str, Any]:
    return {
        "username": unquote(parts.username or "") or query.get("username", ""),
        "password": unquote(parts.password or "") or query.get("password", ""),
        "db": int(query.get("db") or 0),
    }


def _unix(parts: SplitResult, query: dict[str, str]) -> Endpoint:
    return Endpoint(path=unquote(parts.path), **_credentials(parts, query))


def _tcp(parts: SplitResult, query: dict[str, str]) -> Endpoint:
    known = _credentials(parts, query)
    if number := parts.path.strip("/"):
        known["db"] = int(number)
    options = {key: value for key, value in query.items() if key.startswith("ssl_")}
    tls = parts.scheme in _TLS_SCHEMES
    return Endpoint(host=parts.hostname or "localhost", port=parts.port or 6379, tls=tls, tls_options=options, **known)


def _sentinel(parts: SplitResult, query: dict[str, str]) -> Endpoint:
    known = _credentials(parts, query)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    pairs = [host.rpartition(":") if ":" in host else (host, ":", "26379") for host in hosts]
    service, _, number = parts.path.strip("/").partition("/")
    known["db"] = int(number or 0)
    if not service:
        raise _NoService("it names no service: redis+sentinel://host:26379/mymaster/0")
    return Endpoint(sentinels=tuple((host, int(port)) for host, _, port in pairs), service=service, **known)


def _masked(url: str) -> str:
    """The URL without its credentials, also where they are not written as they should be."""
    scheme, mark, rest = url.partition("://")
    if not mark or "@" in scheme:
        scheme, mark, rest = "", "", url
    if "password=" in rest:
        return f"{scheme}{mark}***"
    _, at, place = rest.rpartition("@")
    return f"{scheme}{mark}***@{place}" if at else url


def endpoint_of(settings: Settings) -> Endpoint:
    """The server that the settings name.

    Raises SettingsError without one, SecretRequired for unsigned use of a network.
    """
    if settings.redis_url is None:
        raise SettingsError(
            "No cluster is known to this process: call serve.run(...) first, which starts an embedded one, or set "
            "QSERVE_REDIS_URL to the cluster's Redis (redis://host:6379/0)."
        )
    endpoint = parse_url(settings.redis_url)
    if settings.secrets:
        return endpoint
    if not endpoint.is_local and not settings.insecure:
        raise SecretRequired(
            f"Redis at {endpoint} is reached over a network and QSERVE_SECRET_KEY is not set. Calls are pickled: "
            "whoever can write to that Redis could run code here. Make a key with `qserve secret new` and give it to "
            "every process, or pass --insecure (QSERVE_INSECURE=1) if nobody else can reach it."
        )
    _warn_unsigned(str(endpoint))
    return endpoint


@lru_cache(maxsize=16)
def _warn_unsigned(endpoint: str) -> None:
    logger.warning("Calls through %s are not signed: set QSERVE_SECRET_KEY (`qserve secret new` makes one).", endpoint)


async def resolve(endpoint: Endpoint) -> Endpoint:
    """The server to connect to now: the endpoint itself, or the master that the Sentinels name."""
    if not endpoint.sentinels:
        return endpoint
    from redis.asyncio.sentinel import Sentinel
    from redis.exceptions import RedisError

    sentinel = Sentinel(endpoint.sentinels, socket_timeout=CONNECT_TIMEOUT_S)  # type: ignore[no-untyped-call]  # has no types
    try:
        host, port = await sentinel.discover_master(endpoint.service)
    except RedisError as error:
        raise unavailable(endpoint, error) from error
    finally:
        for client in sentinel.sentinels:
            await client.aclose()
    return Endpoint(host=host, port=port, username=endpoint.username, password=endpoint.password, db=endpoint.db)


async def open_transport(endpoint: Endpoint, factory: Any) -> Any:
    """Connect a protocol to the server. Raises BrokerUnavailable with the masked URL and the mend."""
    loop = asyncio.get_running_loop()
    try:
        target = await resolve(endpoint)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if target.path:
                return await loop.create_unix_connection(factory, target.path)
            return await loop.create_connection(factory, target.host, target.port, ssl=target.ssl_context())
    except (OSError, TimeoutError, UnicodeError) as error:  # UnicodeError: no such name can be a host's
        raise unavailable(endpoint, error) from error


def unavailable(endpoint: Endpoint, error: BaseException) -> BrokerUnavailable:
    """The error for a server that cannot be reached."""
    reason = str(error) or type(error).__name__
    return BrokerUnavailable(
        f"Redis at {endpoint} cannot be reached: {reason}. Start it, or point QSERVE_REDIS_URL at the one that runs "
        "(unset, qserve starts an embedded one). `qserve doctor` looks closer."
    )


def says_go_away(error: Exception) -> bool:
    """Whether this answer means that the server cannot serve writes now, and the connection should be left."""
    return str(error).startswith(_MOVED)


def refused(endpoint: Endpoint, error: Exception) -> TransportError:
    """The error for a server that answered with one."""
    text = str(error)
    if says_go_away(error):
        return BrokerUnavailable(f"Redis at {endpoint} cannot take commands now: {text}")
    kind, mend = BrokerRefused, ""
    if text.startswith(("WRONGPASS", "NOAUTH")):
        kind = BrokerDenied
        mend = " Put user and password into QSERVE_REDIS_URL: redis://user:password@host:6379/0."
    elif text.startswith("NOPERM"):
        kind, mend = BrokerDenied, " Give this user the permission."
    elif text.startswith("OOM"):
        mend = " Redis is at its maxmemory; running calls still finish and free some."
    return kind(f"Redis at {endpoint} refused: {text}.{mend}")
