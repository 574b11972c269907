"""A Compose file: one machine, the same topology as everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qserve.config import SECRET_KEY, supervised_env
from qserve.generate.stack import DAEMONS, HEARTBEAT_FILE, VALKEY, VALKEY_IMAGE, Pool, Stack, is_alive, is_ready
from qserve.generate.text import dump, note

FILE = "docker-compose.yml"
_SECRET = "qserve_secret_key"  # noqa: S105 (its name, not a key)
_FROM_DOT_ENV = "${QSERVE_REDIS_URL:?write it into .env}"
_RESTART = "unless-stopped"


def compose(stack: Stack) -> dict[str, str]:
    """The one file of `docker compose up`. Raises UsageError for a server that containers cannot reach."""
    stack.refuse_local()
    services = [dump(service, comment=why, indent=2) for why, service in _services(stack)]
    rest = [dump({"secrets": {_SECRET: {"environment": SECRET_KEY}}}, comment=_HOW_TO_HIDE)]
    if stack.redis_url is None:
        rest.insert(0, dump({"volumes": {"valkey": {}}}))
    return {FILE: "\n".join([note(_head(stack)), "services:\n" + "\n".join(services), *rest])}


_WHY_VALKEY = "On disk once a second, and never evicting: what it holds are calls and replies, not a cache."
_HOW_TO_HIDE = (
    "Compose reads it from .env and shows it to the processes as a file: neither this file, nor the image, nor "
    "`docker inspect` holds it."
)


def _services(stack: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each service with its reason, by its name."""
    if stack.redis_url is None:
        yield _WHY_VALKEY, {"valkey": _valkey()}
    for pool in stack.pools:
        yield _why_worker(stack), {pool.name: _worker(stack, pool)}
    for name, count in stack.daemons.items():
        service = _service(stack, stack.daemon(name, HEARTBEAT_FILE))
        yield f"It {DAEMONS[name]}.", {name: service | {"deploy": {"replicas": count}, "healthcheck": _healthcheck()}}


def _why_worker(stack: Stack) -> str:
    if stack.is_fixed:
        return "Each hosts the same replicas by itself: more workers are more replicas."
    return "Its health: it has joined, and its event loop turns. A Redis that is away for a while makes no worker ill."


def _head(stack: Stack) -> str:
    lines = ["A whole cluster on one machine. Made by `qserve generate compose`.", ""]
    lines.append(f'    (umask 077; echo "QSERVE_SECRET_KEY=$(docker run --rm {stack.image} qserve secret new)" > .env)')
    if stack.hides_url:
        lines.append(f"    (umask 077; echo 'QSERVE_REDIS_URL={stack.endpoint}' >> .env)    # with the real password")
    lines.append("    docker compose up --detach")
    lines.append(f"    docker compose exec {stack.pools[0].name} qserve status                what runs where")
    lines.append(f"    docker compose up --detach --scale {stack.pools[0].name}=4             more hosts")
    return "\n".join(lines)


def _valkey() -> dict[str, Any]:
    return {
        "image": VALKEY_IMAGE,
        "command": list(VALKEY),
        "volumes": ["valkey:/data"],
        "healthcheck": {
            "test": ["CMD-SHELL", "valkey-cli ping | grep -q PONG"],
            "interval": "5s",
            "timeout": "3s",
            "retries": 5,
        },
        "restart": _RESTART,
        "stop_grace_period": "30s",
    }


def _service(stack: Stack, command: list[str]) -> dict[str, Any]:
    """What all processes of ours share."""
    url = "redis://valkey:6379/0" if stack.redis_url is None else _escape(stack.redis_url)
    service: dict[str, Any] = {
        "image": stack.image,
        "init": True,
        "command": [_escape(word) for word in command],
        "environment": supervised_env(
            redis_url=_FROM_DOT_ENV if stack.hides_url else url,
            namespace=_escape(stack.namespace),
            secret_file=f"/run/secrets/{_SECRET}",
        ),
        "secrets": [_SECRET],
    }
    if stack.redis_url is None:
        service["depends_on"] = {"valkey": {"condition": "service_healthy"}}
    return service | {"restart": _RESTART, "stop_grace_period": f"{stack.grace_s}s"}


def _worker(stack: Stack, pool: Pool) -> dict[str, Any]:
    service = _service(stack, stack.worker(pool, HEARTBEAT_FILE))
    return service | {"deploy": _deploy(stack), "healthcheck": _healthcheck()}


def _deploy(stack: Stack) -> dict[str, Any]:
    limits: dict[str, str] = {}
    if stack.cpus is not None:
        limits["cpus"] = f"{stack.cpus:g}"
    if stack.memory_mib is not None:
        limits["memory"] = f"{stack.memory_mib}m"
    resources: dict[str, Any] = {"limits": limits} if limits else {}
    if stack.gpus:
        device = {"driver": "nvidia", "count": stack.gpus, "capabilities": ["gpu"]}
        resources["reservations"] = {"devices": [device]}
    deploy: dict[str, Any] = {"replicas": stack.workers}
    return deploy | ({"resources": resources} if resources else {})


def _healthcheck() -> dict[str, Any]:
    test = _escape(f"{is_ready()} && {is_alive()}")
    return {"test": ["CMD-SHELL", test], "interval": "10s", "timeout": "5s", "start_period": "15s"}


def _escape(text: str) -> str:
    """Compose reads $ as the begin of a variable of its own; $$ is one for the process."""
    return text.replace("$", "$$")
