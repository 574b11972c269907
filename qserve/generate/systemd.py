"""Units for systemd: one host, its workers as instances of a template."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from qserve.config import supervised_env
from qserve.errors import UsageError
from qserve.generate.stack import DAEMONS, VALKEY, Pool, Stack
from qserve.generate.text import note

_LOCAL = "redis://127.0.0.1:6379/0"
_FOLDER = "/etc/qserve"
# Wrong usage, a refused password or key, wrong settings: starting again mends none of them.
_FINAL_CODES = "2 77 78"


_UNIT = """\
{head}
[Unit]
Description={description}
Wants=network-online.target
# Valkey or Redis only where they run on this host; a server elsewhere is waited for by trying again.
After=network-online.target valkey.service valkey-server.service redis.service redis-server.service
# Never give up: Redis may be away for an hour.
StartLimitIntervalSec=0

[Service]
User={user}
WorkingDirectory={app_dir}
EnvironmentFile={folder}/qserve.env
# Only this process sees the key, as a file that goes with it.
LoadCredential=secret.key:{folder}/secret.key
Environment=QSERVE_SECRET_KEY_FILE=%d/secret.key PYTHONPATH={app_dir} PYTHONUNBUFFERED=1
ExecStart={program}

# TERM goes to this process alone: it lets running calls finish, and hands the rest back. What is left is killed then.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={stop_s}
Restart=always
RestartSec=1
# From 1 s up to 30 s between the tries (systemd 254 and newer; older ones stay at 1 s).
RestartSteps=6
RestartMaxDelaySec=30
# Wrong usage, a refused key or wrong settings: a person has to mend these.
RestartPreventExitStatus={final_codes}
{more}

NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
# The one place that applications may write to, beside /tmp: /var/lib/qserve.
StateDirectory=qserve
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
LockPersonality=yes
SystemCallArchitectures=native
UMask=0077

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are on the host.

    venv     the environment in which qserve and the modules of the applications are installed
    app_dir  the folder that is searched for modules first
    user     who runs all of it
    """

    venv: str = "/opt/qserve/venv"
    app_dir: str = "/opt/qserve/app"
    user: str = "qserve"

    def __post_init__(self) -> None:
        if not (self.venv.startswith("/") and self.app_dir.startswith("/")):
            raise UsageError(
                f"systemd wants whole paths: --venv {self.venv} and --app-dir {self.app_dir} begin with /."
            )


def systemd(stack: Stack, place: Place | None = None) -> dict[str, str]:
    """Units and the files beside them, by name. Those that end in .service belong into /etc/systemd/system."""
    place = place or Place()
    files = {"qserve.env": _environment(stack)}
    for pool in stack.pools:
        files[f"qserve-{pool.name}@.service"] = _worker(stack, pool, place)
    for name, count in stack.daemons.items():
        files[f"qserve-{name}.service"] = _unit(
            head=_head(f"qserve {name}", f"enable --now qserve-{name}    # on {count} hosts"),
            description=f"qserve {name}: {DAEMONS[name].partition(';')[0]}",
            command=stack.daemon(name, None),
            stop_s=stack.grace_s,
            place=place,
            more=["PrivateDevices=yes"],
        )
    if stack.redis_url is None:
        files["valkey.conf"] = _valkey()
    return files


def _environment(stack: Stack) -> str:
    url = stack.redis_url or _LOCAL
    lines = [
        f"{_FOLDER}/qserve.env: what all qserve processes of this host share. Mode 0600: systemd reads it as root.",
        "",
        f"    sudo install -d -m 0700 {_FOLDER}",
        f"    sudo install -m 0600 qserve.env {_FOLDER}/",
        f"    qserve secret new | sudo install -m 0600 /dev/stdin {_FOLDER}/secret.key    # once; copy it",
    ]
    if stack.hides_url:
        lines.append("Write the real password in the place of the stars.")
        url = str(stack.endpoint)
    values = supervised_env(redis_url=url, namespace=stack.namespace, secret_file="")  # the key's file is the units'
    assigned = [f"{name}={_quoted(value)}" for name, value in values.items() if value]
    return note("\n".join(lines)) + "\n".join(assigned) + "\n"


def _worker(stack: Stack, pool: Pool, place: Place) -> str:
    instances = "1" if stack.workers == 1 else f"{{1..{stack.workers}}}"
    unit = f"qserve-{pool.name}"
    lines = [
        "# A replica that runs out of memory ends alone: the worker hands back its calls and starts another.",
        "OOMPolicy=continue",
        "LimitNOFILE=65536",
        "TasksMax=infinity",
        "PrivateDevices=no" if stack.gpus else "PrivateDevices=yes",
    ]
    if stack.memory_mib is not None:
        lines.append(f"MemoryMax={stack.memory_mib}M")
    if stack.cpus is not None:
        lines.append(f"CPUQuota={int(stack.cpus * 100)}%")
    head = _head("qserve worker", f"enable --now {unit}@{instances}")
    if stack.workers > 1 and stack.cpus is None:
        head += note("Several workers on one host each offer all of its CPUs: say --cpus to share them out.")
    if stack.memory_mib is None:
        head += note(
            "No MemoryMax: replicas may take all memory of the host. Give it some less than the host has "
            "(`systemctl edit`), and the kernel ends a replica instead of something else."
        )
    description = f"qserve {pool.name} %i: hosts replicas"
    return _unit(
        head=head,
        description=description,
        command=stack.worker(pool, None),
        stop_s=stack.grace_s,
        place=place,
        more=lines,
    )


def _head(command: str, action: str) -> str:
    lines = [f"Runs `{command}`. Made by `qserve generate systemd`.", "", "    sudo systemctl daemon-reload"]
    return note("\n".join([*lines, f"    sudo systemctl {action}", "", ""]))


def _unit(*, head: str, description: str, command: list[str], stop_s: int, place: Place, more: list[str]) -> str:
    words = [f"{place.venv}/bin/{command[0]}", *command[1:]]
    return _UNIT.format(
        head=head,
        description=description,
        user=place.user,
        app_dir=_escaped(place.app_dir),
        folder=_FOLDER,
        program=" ".join(_quoted(_escaped(word).replace("$", "$$")) for word in words),
        stop_s=stop_s,
        final_codes=_FINAL_CODES,
        more="\n".join(more),
    )


def _valkey() -> str:
    options = " ".join(VALKEY[1:]).split(" --")
    lines = [option.removeprefix("--") for option in options]
    head = """
    For the Valkey of this host: put it beside its configuration and name it there, in the last line.

        include /etc/valkey/qserve.conf

    Waiting calls and deployments are on disk, and nothing is evicted: calls and replies are no cache.
    maxmemory: at most 60 % of what the server may use; a rewrite of its file copies what changes meanwhile.
    """
    return note(head) + "\n".join([*lines, "maxmemory 1gb"]) + "\n"


def _escaped(text: str) -> str:
    """% begins a specifier of systemd's."""
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word of ExecStart or a value of EnvironmentFile: both read quotes as a shell does."""
    return word if shlex.quote(word) == word else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
