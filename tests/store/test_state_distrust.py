"""State that was tampered with, copied, or written by another version: refused or passed over; nobody dies of it."""

from __future__ import annotations

import json

import pytest

from qserve.errors import ApplicationNotFound, BrokerRefused, SignatureError
from qserve.spec import (
    ApplicationStatus,
    ApplicationStatusInfo,
)
from qserve.store.state import Change, ClusterState
from qserve.wire.messages import UnreadableVersion, seal_control
from qserve.wire.signing import Direction, KeyRing
from tests.store.records import HOSTED, NODE, REPLICA, SHOP


@pytest.mark.leaves(code=1)
@pytest.mark.parametrize("position", [0, 3, 12, -1])
async def test_tampered_code_is_refused(state, server, position):
    """A replica unpickles it: whoever changed a byte of it would run code in every replica."""
    await state.deploy(SHOP, {"v1": b"pickled"})
    sealed = bytearray(server.get(state.keys.code("v1")))
    sealed[position] ^= 1
    server.set(state.keys.code("v1"), bytes(sealed))

    with pytest.raises(SignatureError):
        await state.code("v1")


@pytest.mark.leaves(code=1)
@pytest.mark.parametrize("scope", ["another namespace", "unsigned", "another secret"])
async def test_code_signed_elsewhere_is_refused(state, server, settings, scope):
    """A good signature of the wrong place is a wrong signature."""
    signers = {
        "another namespace": KeyRing(settings.secrets).signer(Direction.CONTROL, "elsewhere:code:v1"),
        "unsigned": KeyRing().signer(Direction.CONTROL, state.keys.scope("code", "v1")),
        "another secret": KeyRing([b"some other secret key"]).signer(Direction.CONTROL, state.keys.scope("code", "v1")),
    }
    server.set(state.keys.code("v1"), seal_control(b"pickled", signers[scope]))

    with pytest.raises(SignatureError):
        await state.code("v1")


@pytest.mark.leaves(code=2)
async def test_code_of_another_version_is_refused(state, server):
    """Whoever can write to Redis could otherwise bring last year's code back, or run one deployment as another."""
    await state.deploy(SHOP, {"v1": b"one", "v2": b"two"})
    one, two = (server.get(state.keys.code(version)) for version in ("v1", "v2"))
    server.set(state.keys.code("v1"), two)
    server.set(state.keys.code("v2"), one)

    for version in ("v1", "v2"):
        with pytest.raises(SignatureError, match="belong to something else"):
            await state.code(version)


@pytest.mark.leaves(code=1)
@pytest.mark.parametrize("taken_from", ["an application", "the seal"])
async def test_another_envelope_is_no_code(state, server, taken_from):
    """Each of them carries a good signature; it says nothing of what it does not name."""
    await state.deploy(SHOP, {})
    await state.set_seal()
    other = server.get(state.keys.seal) if taken_from == "the seal" else server.hget(state.keys.apps, "shop")
    server.set(state.keys.code("v1"), other)

    with pytest.raises(SignatureError, match="belong to something else"):
        await state.code("v1")


async def test_an_application_under_another_name_is_refused(state, server):
    """A copied entry would start a second instance of everything, or replace one application by another."""
    await state.deploy(SHOP, {})
    await state.deploy(SHOP.model_copy(update={"name": "other"}), {})
    server.hset(state.keys.apps, "other", server.hget(state.keys.apps, "shop"))

    with pytest.raises(SignatureError, match="belong to something else"):
        await state.app("other")
    assert set(await state.wanted()) == {"shop"}


async def test_an_unsigned_application_under_another_name_is_refused_too(link, server, settings):
    """Where nothing is signed, a slip of the hand must not confuse the leader either."""
    state = ClusterState(link, settings.namespace, KeyRing())
    await state.deploy(SHOP, {})
    server.hset(state.keys.apps, "other", server.hget(state.keys.apps, "shop"))

    with pytest.raises(SignatureError, match="'shop' under another name"):
        await state.app("other")


@pytest.mark.leaves(node_leases=1, assigned=1)
async def test_a_tampered_application_is_left_as_it_is(state, server):
    """It names the code to run and how often. Neither believed nor taken for deleted, nor in the way of the others."""
    await state.deploy(SHOP, {})
    await state.deploy(SHOP.model_copy(update={"name": "other"}), {})
    await state.announce(NODE)
    await state.record(REPLICA)
    status = ApplicationStatusInfo(status=ApplicationStatus.RUNNING)
    changes = [
        Change(state.keys.assignments("n1"), "r1", HOSTED.to_json()),
        Change(state.keys.statuses, "shop", status.to_json()),
    ]
    await state.write(changes, "test")
    sealed = server.hget(state.keys.apps, "shop").replace(b'"replicas":2', b'"replicas":9')
    server.hset(state.keys.apps, "shop", sealed)

    with pytest.raises(SignatureError):
        await state.app("shop")
    seen = await state.snapshot()

    assert set(seen.apps) == {"other"}
    assert not any((seen.statuses, seen.replicas, seen.assignments))


async def test_a_deploy_with_another_secret_than_the_leader_s_is_refused(state, link, settings):
    """Nothing that it deploys could ever run, and its calls would be refused: better said before than after."""
    stranger = ClusterState(link, settings.namespace, KeyRing([b"some other secret key"]))
    await stranger.deploy(SHOP, {})  # nobody leads yet: nobody can tell
    await state.set_seal()

    with pytest.raises(SignatureError, match="does not have the secret of the cluster"):
        await stranger.deploy(SHOP, {"v1": b"pickled"})
    await state.deploy(SHOP, {})


async def test_fields_of_a_newer_version_are_passed_over(state, server):
    """In a rolling upgrade old and new processes read each other's records."""
    newer = NODE.to_json().replace(b'"node_id"', b'"zone":"eu","node_id"')
    server.hset(state.keys.nodes, "n1", newer)

    assert await state.nodes() == ({}, {"n1": NODE})


def deploy_raw(state, server, ring, spec):
    """Deploy a spec that this version of qserve would not write."""
    sealed = seal_control(json.dumps(spec).encode(), ring.signer(Direction.CONTROL, state.keys.scope("app", "shop")))
    server.hset(state.keys.apps, "shop", sealed)


async def test_options_of_a_newer_version_are_passed_over(state, server, ring):
    """One deploy from a newer laptop must not stop the autoscaler and the workers that run already."""
    newer = SHOP.model_dump(mode="json")
    config = newer["deployments"][0]["config"]
    config |= {"an_option": 1, "autoscaling_config": {"max_replicas": 3, "another": 2, "policy": {"a_third": 3}}}
    config["ray_actor_options"]["num_tpus"] = 1
    deploy_raw(state, server, ring, newer)

    read = (await state.app("shop")).deployments[0].config

    assert (read.max_queued_requests, read.autoscaling_config.max_replicas) == (7, 3)
    assert set(await state.wanted()) == {"shop"}


@pytest.mark.leaves(node_leases=1, assigned=1)
async def test_an_application_that_cannot_be_read_is_left_as_it_is(state, server, ring, caplog):
    """Signed, but with a value from another version: neither taken for deleted nor in the way of the others."""
    await state.deploy(SHOP.model_copy(update={"name": "other"}), {})
    await state.announce(NODE)
    await state.record(REPLICA)
    await state.write([Change(state.keys.assignments("n1"), "r1", HOSTED.to_json())], "test")
    newer = SHOP.model_dump(mode="json")
    newer["deployments"][0]["config"]["num_replicas"] = "as many as it takes"
    deploy_raw(state, server, ring, newer)
    server.hset(state.keys.apps, b"\xff", b"junk")

    with pytest.raises(UnreadableVersion, match=r"cannot read it; was it deployed by a newer one"):
        await state.app("shop")
    with pytest.raises(ApplicationNotFound, match="does not exist"):
        await state.app("third")
    seen = await state.snapshot()

    assert set(seen.apps) == {"other"}
    assert not any((seen.replicas, seen.assignments))
    assert "'shop' is left as it is" in caplog.text


@pytest.mark.leaves(node_leases=1)
async def test_a_record_under_another_name_is_passed_over(state, server):
    """A node that is listed under two names would be given replicas that nobody starts."""
    await state.announce(NODE)
    server.hset(state.keys.nodes, "n2", NODE.to_json())

    assert await state.nodes() == ({"n1": NODE}, {})


async def test_a_generation_that_is_no_number_is_an_error_of_the_transport(state, server):
    """The autoscaler skips the turn and says why, instead of ending."""
    server.set(state.keys.generation, "many")
    with pytest.raises(BrokerRefused, match=r"is no number: b'many'\. Remove that key"):
        await state.pulse([])
    server.delete(state.keys.generation)


@pytest.mark.leaves(node_leases=1, assigned=1)
async def test_records_that_cannot_be_read_are_passed_over(state, server, caplog):
    """One field of junk must not stop the autoscaler, and with it every deployment of the namespace."""
    await state.announce(NODE)
    for name in (state.keys.nodes, state.keys.replicas, state.keys.statuses, state.keys.assignments("n1")):
        server.hset(name, b"\xff", "{}")
        server.hset(name, "junk", "junk")

    seen = await state.snapshot()

    assert seen.nodes == {"n1": NODE}
    assert not any((seen.statuses, seen.replicas, seen.assignments))
    assert "is passed over, it is no NodeRecord" in caplog.text


@pytest.mark.leaves(node_leases=1)
async def test_a_record_without_a_name_takes_no_others_along(state, server, caplog):
    """Its removal would be that of the whole hash: the leader forgot all nodes for one that had no name."""
    await state.announce(NODE)
    server.hset(state.keys.nodes, "", NODE.model_copy(update={"node_id": ""}).to_json())
    server.hset(state.keys.statuses, "", ApplicationStatusInfo(status=ApplicationStatus.RUNNING).to_json())

    seen = await state.snapshot()

    assert (seen.nodes, seen.lapsed, seen.statuses) == ({"n1": NODE}, {}, {})
    assert "it has no name" in caplog.text


@pytest.mark.leaves(node_leases=1)
@pytest.mark.parametrize("amount", ["Infinity", "-Infinity", "NaN", "-1"])
async def test_a_node_that_offers_what_is_no_amount_is_passed_over(state, server, amount):
    """The leader counts with it, and infinity ends a sum with an error: no deployment would be looked after."""
    await state.announce(NODE)
    record = json.loads(NODE.model_copy(update={"node_id": "n2"}).to_json()) | {"resources": {"num_gpus": "?"}}
    server.hset(state.keys.nodes, "n2", json.dumps(record).replace('"?"', amount))

    assert (await state.snapshot()).lapsed == {}
