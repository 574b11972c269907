"""The bytes that peers of another release send and expect: kept in golden/, written by tests/wire/samples.py."""

import json
from functools import cached_property

import pytest

from qserve.config import PROTOCOL_VERSION
from qserve.wire import codec
from qserve.wire.keys import ClusterKeys, DeploymentKeys, deployment_keys
from qserve.wire.messages import Serializer, open_call, open_control, open_reply
from qserve.wire.signing import Direction
from tests.wire import samples

CURRENT = samples.envelopes()
FOLDER = f"v{PROTOCOL_VERSION}"


def kept(path: str) -> bytes:
    """The bytes of a file, and a hint for who looks for it in vain."""
    file = samples.GOLDEN / path
    assert file.exists(), f"{path} is missing: run `python -m tests.wire.samples`"
    return file.read_bytes()


@pytest.mark.parametrize("path", [path for path in CURRENT if "arguments" not in path])
def test_an_envelope_is_written_as_it_always_was(path: str):
    """A replica that was started last month must read what this code sends today."""
    assert CURRENT[path] == kept(path)


@pytest.mark.parametrize("name", samples.CALLS)
def test_a_kept_call_is_still_read(name: str):
    """Calls wait in Redis while their callers and replicas are upgraded."""
    signer = samples.ring_of(name).signer(Direction.CALL, samples.SCOPE)
    assert open_call(kept(f"{FOLDER}/{name}.bin"), signer) == samples.CALLS[name]


@pytest.mark.parametrize("name", samples.REPLIES)
def test_a_kept_reply_is_still_read(name: str):
    """A result that was stored by an older replica must reach its caller."""
    signer = samples.SIGNED.signer(Direction.REPLY, samples.SCOPE)
    assert open_reply(kept(f"{FOLDER}/{name}.bin"), signer) == samples.REPLIES[name]


@pytest.mark.parametrize("name", samples.CONTROLS)
def test_a_kept_control_envelope_is_still_read(name: str):
    """Specs and code outlive the process that deployed them by months."""
    scope, payload = samples.CONTROLS[name]
    assert open_control(kept(f"{FOLDER}/{name}.bin"), samples.SIGNED.signer(Direction.CONTROL, scope)) == payload


def test_kept_buffers_out_of_band_are_still_read():
    """The layout behind a pickle is ours and must not drift; the pickle in it may differ between Pythons."""
    payload = kept(f"{FOLDER}/arguments-with-buffers.bin")
    args, kwargs = codec.decode_arguments(payload, Serializer.PICKLE, codec.FLAG_BUFFERS, {})

    assert (tuple(bytes(arg) for arg in args), kwargs) == ((b"hello",), {"times": 2})


def test_kept_records_are_still_read():
    """State in Redis was written by whichever release led last. Fields may be added, never taken away or renamed."""
    for name, fields in json.loads(kept(f"{FOLDER}/records.json")).items():
        record = samples.RECORDS[name]
        assert type(record).model_validate(fields | {"added_by_a_newer_release": 1}) == record


def test_names_in_redis_stay_what_they_are():
    """Two releases that name a key differently do not see each other's calls, and nothing says so."""
    assert json.loads(kept(f"{FOLDER}/keys.json")) == samples.key_names()


@pytest.mark.parametrize(
    "keys", [ClusterKeys("ns"), deployment_keys("ns", "app", "Adder")], ids=["cluster", "deployment"]
)
def test_no_name_in_redis_is_missing_here(keys: ClusterKeys | DeploymentKeys):
    """A new key is part of the protocol: releases agree on it, and the documentation names it."""
    names = [name for name, kind in vars(type(keys)).items() if isinstance(kind, cached_property)]
    public = {getattr(keys, name) for name in names if not name.startswith("_")}

    assert public - set(samples.key_names().values()) == set()


def test_every_kept_file_is_in_the_index():
    """A file that vanished or was cut short in a merge would take its test along unnoticed."""
    there = {str(file.relative_to(samples.GOLDEN)): file.stat().st_size for file in samples.GOLDEN.glob("v*/*")}

    assert there == samples.index()["size_bytes"]
    assert samples.files().keys() <= there.keys()
