"""One sample of everything that travels, with fixed ids and secrets, and the files that keep its bytes.

`python -m tests.wire.samples` writes what golden/ lacks for the current protocol version. It leaves files that differ
alone and exits 1: bytes that peers may send must stay readable, so a changed format is a new protocol version.
As long as no release speaks this version, `--replace` overwrites them.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

from qserve.config import PROTOCOL_VERSION, DeploymentConfig
from qserve.spec import (
    ApplicationStatus,
    ApplicationStatusInfo,
    AppSpec,
    Assignment,
    Decision,
    DeploymentSpec,
    DeploymentStatus,
    DeploymentStatusInfo,
    NodeRecord,
    Record,
    ReplicaRecord,
    ReplicaState,
    ScalingRecord,
    StatusTrigger,
)
from qserve.wire import codec
from qserve.wire.keys import GROUP, ClusterKeys, deployment_keys, inbox, request_id
from qserve.wire.messages import Call, Outcome, Reply, Serializer, seal_call, seal_control, seal_reply
from qserve.wire.signing import Direction, KeyRing

GOLDEN = Path(__file__).parent / "golden"
INDEX = GOLDEN / "index.json"
SECRET = b"golden-secret-that-never-changes"
SCOPE = "ns:app:Adder"
CALL_ID = bytes(range(16))
SIGNED, UNSIGNED = KeyRing([SECRET]), KeyRing()

CALLS = {
    "call-signed": Call(CALL_ID, "add", "qserve:1:inbox:1f-a0b1c2d3e4f5", b"arguments"),
    "call-unsigned-json": Call(CALL_ID, "__call__", "inbox", b'{"args":[1],"kwargs":{}}', Serializer.JSON),
    "call-with-context": Call(
        CALL_ID,
        "add",
        "inbox",
        b"arguments",
        deadline_ms=1_700_000_000_000,
        context={"request": f"app.Web.{CALL_ID.hex()}", "inputs": [f"app.Adder.{CALL_ID.hex()}"]},
    ),
    "call-above-4-kib": Call(CALL_ID, "add", "inbox", bytes(range(256)) * 17),
}
REPLIES = {f"reply-{outcome.name.lower()}": Reply(CALL_ID, outcome, b"result") for outcome in Outcome}
CONTROLS = {
    "control-app": (ClusterKeys("ns").scope("app", "app"), b'{"name":"app"}'),
    "control-code": (ClusterKeys("ns").scope("code", "0123456789abcdef"), b"pickled class and arguments"),
    "control-seal": (ClusterKeys("ns").scope("seal"), b"seal"),
}
# Five bytes that stand behind the pickle; its arguments are a list with them, and a keyword.
BUFFERS = (bytearray(b"hello"),), {"times": 2}

RECORDS: dict[str, Record] = {
    "app": AppSpec(
        name="app",
        ingress="Adder",
        deployments=(
            DeploymentSpec(
                app="app",
                name="Adder",
                version="0123456789abcdef",
                config=DeploymentConfig(num_replicas=2, user_config={"step": 1}),
                python="3.11.7",
                replicas=2,
            ),
        ),
        deployed_at_s=1_700_000_000.5,
        deploy_id="00ff",
    ),
    "node": NodeRecord(
        node_id="host-1", host="host", pid=1, python="3.11.7", qserve="0.1.0", protocol=1, resources={"CPU": 2.0}
    ),
    "assignment": Assignment(
        replica_id="Adder-1", node_id="host-1", app="app", deployment="Adder", version="0123456789abcdef"
    ),
    "replica": ReplicaRecord(
        replica_id="Adder-1",
        node_id="host-1",
        app="app",
        deployment="Adder",
        version="0123456789abcdef",
        state=ReplicaState.FAILED,
        pid=41,
        message="ValueError: no",
    ),
    "scaling": ScalingRecord(
        target=3,
        deploy_id="00ff",
        policy_state={"_timer": ["up", 1_700_000_000.5]},
        last_scale_up_time=1_700_000_000.5,
    ),
    "decision": Decision(
        at_s=1_700_000_000.5,
        before=1,
        after=3,
        reason="3 waiting and 2 running calls ask for 3 replicas at 2 each, for 30 s now",
    ),
    "status": ApplicationStatusInfo(
        status=ApplicationStatus.RUNNING,
        last_deployed_time_s=1_700_000_000.5,
        deploy_id="00ff",
        deployments={
            "Adder": DeploymentStatusInfo(
                status=DeploymentStatus.HEALTHY,
                status_trigger=StatusTrigger.CONFIG_UPDATE_COMPLETED,
                replica_states={"RUNNING": 2},
                version="0123456789abcdef",
                replicas=2,
                started=True,
            )
        },
    ),
}


def ring_of(name: str) -> KeyRing:
    """The key ring that a sample is signed with."""
    return UNSIGNED if "unsigned" in name else SIGNED


def envelopes() -> dict[str, bytes]:
    """The bytes of every envelope, and of arguments whose buffers stand out of band, by the name of their file."""
    sealed = {name: seal_call(call, ring_of(name).signer(Direction.CALL, SCOPE)) for name, call in CALLS.items()}
    sealed |= {name: seal_reply(reply, SIGNED.signer(Direction.REPLY, SCOPE)) for name, reply in REPLIES.items()}
    sealed |= {
        name: seal_control(payload, SIGNED.signer(Direction.CONTROL, scope))
        for name, (scope, payload) in CONTROLS.items()
    }
    args, kwargs = BUFFERS
    outside = tuple(pickle.PickleBuffer(arg) for arg in args)
    sealed["arguments-with-buffers"] = codec.encode_arguments(outside, kwargs, Serializer.PICKLE).data
    return {f"v{PROTOCOL_VERSION}/{name}.bin": data for name, data in sealed.items()}


def key_names() -> dict[str, str]:
    """Every key and channel, by what it is."""
    ours, cluster = deployment_keys("ns", "app", "Adder"), ClusterKeys("ns")
    return {
        "scope": ours.scope,
        "group": GROUP,
        "calls": ours.calls,
        "front": ours.front,
        "dead letters": ours.dead,
        "quarantine": ours.quarantine,
        "asleep": ours.asleep,
        "delayed calls": ours.delayed,
        "envelopes of delayed calls": ours.envelopes,
        "record of a call": ours.record(CALL_ID),
        "lease of a replica": ours.lease("Adder-1"),
        "prefix of leases": ours.lease_prefix,
        "inbox": inbox("1f-abc"),
        "request id": request_id("app", "Adder", CALL_ID),
        "apps": cluster.apps,
        "statuses": cluster.statuses,
        "nodes": cluster.nodes,
        "replicas": cluster.replicas,
        "seal": cluster.seal,
        "scaling": cluster.scaling,
        "decisions on a deployment": cluster.decisions("app", "Adder"),
        "history of an application": cluster.history("app"),
        "logs of a deployment": cluster.logs("app", "Adder"),
        "crons": cluster.crons,
        "scheduler": cluster.scheduler,
        "leader": cluster.leader,
        "term": cluster.term,
        "generation": cluster.generation,
        "events": cluster.events,
        "code of a version": cluster.code("0123456789abcdef"),
        "assignments of a node": cluster.assignments("host-1"),
        "lease of a node": cluster.node_lease("host-1"),
    }


def files() -> dict[str, bytes]:
    """What golden/ keeps for the current protocol version, by path."""
    records = {name: json.loads(record.to_json()) for name, record in RECORDS.items()}
    return envelopes() | {
        f"v{PROTOCOL_VERSION}/records.json": _pretty(records),
        f"v{PROTOCOL_VERSION}/keys.json": _pretty(key_names()),
    }


def index() -> dict[str, dict[str, int]]:
    """The index that is kept: the size of each file, by path."""
    kept: dict[str, dict[str, int]] = json.loads(INDEX.read_text())
    return kept


def main(arguments: list[str]) -> int:
    """Write the files that are missing; with --replace also those that differ. Returns the exit code."""
    replace = arguments == ["--replace"]
    refused = False
    for path, data in files().items():
        file = GOLDEN / path
        if file.exists() and file.read_bytes() != data and not replace:
            sys.stderr.write(f"{path} differs from what this version writes: see the module's docstring.\n")
            refused = True
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    sizes = {str(file.relative_to(GOLDEN)): file.stat().st_size for file in sorted(GOLDEN.glob("v*/*"))}
    INDEX.write_bytes(_pretty({"size_bytes": sizes}))
    return 1 if refused else 0


def _pretty(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
