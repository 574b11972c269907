"""docker-compose.yml without an engine: its structure is checked, and its very commands run as processes here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis
import yaml

from qserve.config import DeploymentConfig, Settings, read_secret
from qserve.generate import Stack, compose
from qserve.generate.stack import HEARTBEAT_FILE
from qserve.store.embedded import find_binary
from qserve.wire.keys import ClusterKeys
from tests.support.cluster import ROOT, eventually

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
HEALTHY, COMPLETED = "service_healthy", "service_completed_successfully"


def dependencies(service: str) -> dict[str, str]:
    """The services that this one waits for, each with the condition it waits for."""
    return {name: rule["condition"] for name, rule in SERVICES[service].get("depends_on", {}).items()}


def seconds(text: str) -> float:
    """A duration such as `30s`."""
    return float(text.removesuffix("s"))


class Here:
    """The file's services as processes of this host, each with the command, environment and check that stand there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker_port, self.web_port = free_port(), free_port()
        self.processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        secret = folder / "secret.key"
        secret.write_text(secrets.token_hex(32))
        # What a container has to itself, a process shares with its host.
        self._replaced = {
            "redis://valkey:6379/0": f"redis://127.0.0.1:{self.broker_port}/0",
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - read from the file, and not used here
            "8000": str(self.web_port),
            "/run/secrets/qserve_secret_key": str(secret),
        }

    @property
    def broker(self) -> redis.Redis:
        """The server, as an outsider sees it."""
        return redis.Redis(port=self.broker_port)

    @property
    def web(self) -> str:
        """Where the web service answers."""
        return f"http://127.0.0.1:{self.web_port}"

    def up(self) -> None:
        """Start everything in the order of its dependencies, each as soon as their conditions are met."""
        graph = {name: dependencies(name).keys() for name in SERVICES}
        for name in TopologicalSorter(graph).static_order():
            for needed, condition in dependencies(name).items():
                met = self.is_healthy if condition == HEALTHY else self.has_completed
                eventually(partial(met, needed), what=f"{needed}: {condition}")
            replicas = SERVICES[name].get("deploy", {}).get("replicas", 1)
            self.processes[name] = [self.start(name, number) for number in range(replicas)]

    def down(self) -> dict[str, list[int]]:
        """Ask all processes to leave, users of the broker first. Returns their exit codes. Safe to call twice."""
        grace_s = max(seconds(service["stop_grace_period"]) for service in SERVICES.values())
        codes: dict[str, list[int]] = {}
        for name in reversed(self.processes):
            for process in self.processes[name]:
                process.terminate()
            codes[name] = [process.wait(grace_s) for process in self.processes[name]]
        return codes

    def kill(self) -> None:
        """End what `down` did not."""
        for process in (one for name in reversed(self.processes) for one in self.processes[name]):
            process.kill()
            process.wait()

    def start(self, name: str, number: int = 0) -> subprocess.Popen[bytes]:
        """One process of a service."""
        command = [self._there(word, name, number) for word in SERVICES[name]["command"]]
        if command[0] == "valkey-server":
            place = ["--bind", "127.0.0.1", "--port", str(self.broker_port), "--dir", str(self.folder)]
            command = [find_binary(Settings()), *command[1:], *place]
        return subprocess.Popen(command, env=self._environment(name), cwd=self.folder, stdin=subprocess.DEVNULL)

    def is_healthy(self, name: str, number: int | None = None) -> bool:
        """What the service's own health check says in one of its containers, or in all."""
        if number is None:
            return all(self.is_healthy(name, one) for one in range(len(self.processes[name])))
        kind, *check = (self._there(word, name, number) for word in SERVICES[name]["healthcheck"]["test"])
        if check == ["valkey-cli ping | grep -q PONG"]:
            return self._broker_answers()
        command = ["sh", "-c", check[0].replace("$$", "$")] if kind == "CMD-SHELL" else check
        return self.ask(name, *command).returncode == 0

    def ask(self, name: str, *command: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command as `docker compose exec NAME` does."""
        return subprocess.run(command, env=self._environment(name), capture_output=True, check=False)

    def has_completed(self, name: str) -> bool:
        """Whether a one-shot service has ended well."""
        codes = [process.poll() for process in self.processes[name]]
        assert set(codes) <= {None, 0}, f"{name} failed"
        return set(codes) == {0}

    def leader(self) -> subprocess.Popen[bytes]:
        """The autoscaler that leads now."""
        name: Any = self.broker.get(ClusterKeys("default").leader)
        return next(process for process in self.processes["autoscaler"] if f"-{process.pid}-" in (name or b"").decode())

    def hosting_worker(self) -> subprocess.Popen[bytes]:
        """A worker with at least one replica."""
        return next(process for process in self.processes["worker"] if psutil.Process(process.pid).children())

    def _broker_answers(self) -> bool:
        try:
            return bool(self.broker.ping())
        except redis.ConnectionError:
            return False

    def _there(self, text: str, name: str, number: int) -> str:
        """The same of a container's own /tmp."""
        return self._here(text).replace(HEARTBEAT_FILE, str(self.folder / f"{name}-{number}.heartbeat"))

    def _here(self, text: str) -> str:
        for there, here in self._replaced.items():
            text = text.replace(there, here)
        return text

    def _environment(self, name: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("QSERVE_")}
        given = {key: self._here(value) for key, value in SERVICES[name].get("environment", {}).items()}
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        return {**inherited, **given, "PATH": path, "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def runs(command: list[str], cwd: Path = ROOT) -> bool:
    """Whether the command ends well."""
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def here() -> Iterator[Here]:
    """The whole topology, up: a server with its file, two workers, two autoscalers, an application, a web service."""
    with tempfile.TemporaryDirectory(prefix="compose-") as folder:
        running = Here(Path(folder))
        try:
            running.up()
            eventually(lambda: running.is_healthy("web"), what="the web service answers")
            yield running
        finally:
            running.kill()


# --- the file ---


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_waits_only_for_what_can_come(service):
    """A condition that no check can ever meet would keep `docker compose up` waiting for ever."""
    for needed, condition in dependencies(service).items():
        assert condition in (HEALTHY, COMPLETED)
        if condition == HEALTHY:
            assert SERVICES[needed]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        else:
            assert SERVICES[needed]["restart"] == "on-failure"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_watched_and_comes_back(service):
    """A process that died or hangs at night is restarted or seen; only the one that is meant to end has no check."""
    ends_by_itself = any(dependencies(name).get(service) == COMPLETED for name in SERVICES)
    assert ("healthcheck" in SERVICES[service]) is not ends_by_itself
    assert SERVICES[service]["restart"] == ("on-failure" if ends_by_itself else "unless-stopped")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_given_time_to_drain(service):
    """Docker kills 10 s after TERM unless told otherwise: running calls would be cut off."""
    drains_s = DeploymentConfig.model_fields["graceful_shutdown_timeout_s"].default
    assert seconds(SERVICES[service]["stop_grace_period"]) > drains_s


def test_all_processes_share_one_secret_that_git_and_the_image_never_see():
    """A key in the image or in the repository is no key."""
    ours = [service for service in SERVICES.values() if service["image"] == "qserve"]
    assert len(ours) == 4
    for service in ours:
        (secret,) = service["secrets"]
        assert service["environment"]["QSERVE_SECRET_KEY_FILE"] == f"/run/secrets/{secret}"
        assert COMPOSE["secrets"][secret] == {"environment": "QSERVE_SECRET_KEY"}
        assert "QSERVE_SECRET_KEY" not in service["environment"], "docker inspect would show it"
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    assert "!.env" not in ignored


def test_the_example_of_the_secret_file_holds_no_key():
    """A key that everybody can read here would be used by many: the empty one makes each process say how to get one."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert settings == {"QSERVE_SECRET_KEY": ""}
    assert read_secret(settings) == ()


def test_the_server_keeps_every_call():
    """The server's defaults lose a restart's last minutes; a cache's policy would drop calls when memory is short."""
    command = " ".join(SERVICES["valkey"]["command"])
    for option in ("--appendonly yes", "--appendfsync everysec", "--maxmemory-policy noeviction"):
        assert option in command
    volume = SERVICES["valkey"]["volumes"][0].split(":")
    assert volume[0] in COMPOSE["volumes"]
    assert volume[1] == "/data"


def test_the_image_holds_what_its_services_run_and_is_not_root():
    """User code runs in the workers: it must not be root in a container that shares its kernel."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert not users[-1].startswith(("0", "root"))
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = {word for line in lines if re.match(r"COPY (?!--from)", line) for word in line.split()[1:-1]}
    assert copied == set(let_in)
    assert all((ROOT / name).exists() for name in copied)


def test_the_file_is_what_qserve_generates_and_the_examples_own_services():
    """Whoever begins with the generator and whoever copies this file run the same thing."""
    generated = yaml.safe_load(compose(Stack())["docker-compose.yml"])
    ours = {
        name: {key: value for key, value in service.items() if key != "build"} for name, service in SERVICES.items()
    }
    assert ours.keys() - generated["services"].keys() == {"deploy", "web"}
    assert {name: ours[name] for name in generated["services"]} == generated["services"]
    assert {name: COMPOSE[name] for name in ("volumes", "secrets")} == {
        name: generated[name] for name in ("volumes", "secrets")
    }


def test_docker_compose_can_read_the_file(tmp_path):
    """The last word on what the file means is Docker's. Reading it needs no engine."""
    commands = (["docker", "compose"], ["docker-compose"])
    present = [command for command in commands if shutil.which(command[0]) and runs([*command, "version"])]
    if not present:
        pytest.skip("neither the compose plugin of docker nor docker-compose is installed")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    assert runs([*present[0], "--project-directory", str(tmp_path), "config", "--quiet"], cwd=tmp_path)


# --- the topology ---


def test_every_service_says_that_it_is_healthy(here):
    """The checks are run in the containers: one that fails on a working cluster would restart it, or hold it back."""
    for name in (name for name, service in SERVICES.items() if "healthcheck" in service):
        eventually(partial(here.is_healthy, name), what=f"{name} is healthy")


@pytest.mark.parametrize("service", ["worker", "autoscaler"])
def test_a_health_check_says_no_where_nothing_runs(here, service):
    """A check that passes in an empty container would show a dead process as healthy."""
    assert not here.is_healthy(service, number=99)


@pytest.mark.parametrize("service", ["worker", "autoscaler"])
def test_a_health_check_says_no_once_the_event_loop_hangs(here, service):
    """Its process is still there: nothing but the age of its file tells."""
    hung = here.folder / f"{service}-98.heartbeat"
    hung.write_text("ready\n")
    assert here.is_healthy(service, number=98)
    os.utime(hung, (time.time() - 31, time.time() - 31))
    assert not here.is_healthy(service, number=98)


def test_a_request_is_answered_by_a_replica_elsewhere(here):
    """The web service hosts nothing: it makes a call, and a replica of some worker computes the answer."""
    assert httpx.get(f"{here.web}/sum/40").json() == {"result": 42}


def test_a_call_is_left_and_its_result_fetched_later(here):
    """What takes longer than a browser waits: 202 and an id at once, the result when it is there."""
    left = httpx.post(f"{here.web}/calls/40")
    assert left.status_code == 202
    address = f"{here.web}/calls/{left.json()['request_id']}"

    eventually(lambda: httpx.get(address).json() == {"status": "DONE", "result": 42}, what="the result is there")


@pytest.mark.parametrize("request_id", ["nonsense", "compose.Caller." + 32 * "0"])
def test_an_id_that_nobody_knows_is_not_found(here, request_id):
    """A mistyped or expired id is the client's affair: 404, not an error of the server."""
    assert httpx.get(f"{here.web}/calls/{request_id}").status_code == 404


def test_the_doctor_finds_nothing_wrong(here):
    """What the file sets up is what we tell others to set up: signed calls, a file on disk, two of everything."""
    doctor = here.ask("web", "qserve", "doctor", "--json")
    assert doctor.returncode == 0
    verdicts = {check["name"]: check["verdict"] for check in json.loads(doctor.stdout)["checks"]}
    assert set(verdicts.values()) == {"ok"}, verdicts


async def test_requests_are_answered_although_a_worker_and_the_leader_are_killed(here):
    """Two of each are there so that one may die: the others take over its calls, its replicas and its lead."""
    victims = [here.hosting_worker(), here.leader()]
    async with httpx.AsyncClient(base_url=here.web, timeout=40) as client:
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        answers = await asyncio.gather(*(client.get(f"/sum/{number}") for number in range(20)))

    assert [answer.json() for answer in answers] == [{"result": number + 2} for number in range(20)]
    assert [victim.wait() for victim in victims] == [-signal.SIGKILL, -signal.SIGKILL]


def test_deploying_the_same_again_changes_nothing(here):
    """`docker compose up` runs the one-shot every time: it must neither restart replicas nor fail."""
    workers = [process for process in here.processes["worker"] if process.poll() is None]
    before = {child.pid for worker in workers for child in psutil.Process(worker.pid).children()}
    assert here.start("deploy").wait(30) == 0
    assert {child.pid for worker in workers for child in psutil.Process(worker.pid).children()} == before


def test_all_that_still_runs_leaves_when_asked(here):
    """`docker compose down` sends TERM: whoever does not leave by itself is killed half a minute later."""
    codes = here.down()
    killed_before = -signal.SIGKILL
    assert set(codes["worker"]) | set(codes["autoscaler"]) <= {0, killed_before}
    assert codes["valkey"] == codes["deploy"] == [0]
