"""want.lua and drop.lua: specs, histories and code change in one step, and code goes when no version needs it."""

from __future__ import annotations

import asyncio

import pytest

from qserve.errors import CallRejected
from qserve.spec import AppSpec
from qserve.store.history import KEPT_VERSIONS, Read, Wish
from qserve.store.link import Link
from qserve.wire.messages import seal_control
from qserve.wire.signing import Direction, KeyRing
from tests.store.records import ECHO, SHOP
from tests.store.until import until


def version(number: int, app: str = "shop") -> AppSpec:
    """The application as its n-th deploy has it, each with code of its own."""
    spec = ECHO.model_copy(update={"app": app, "version": f"v{number}"})
    return SHOP.model_copy(update={"name": app, "deployments": (spec,), "deploy_id": f"d{number}"})


async def deploy(state, number: int, app: str = "shop", *, is_new: bool = True) -> bool:
    """Want the n-th version, whatever is there."""
    before = await state.history.present(app)
    wish = Wish(before, version(number, app), is_new=is_new)
    wanted: bool = await state.want({app: wish}, {f"v{number}": b"code %d" % number})
    return wanted


async def codes(state) -> set[str]:
    """The versions whose code is there."""
    names = await state.link.call("KEYS", state.keys.code("*"))
    return {name.decode().rpartition(":")[2] for name in names}


@pytest.mark.leaves(code=KEPT_VERSIONS)
async def test_the_last_five_versions_stay_with_their_code(state):
    """A rollback needs no build and no laptop: what ran last week is still there. What is older is not paid for."""
    for number in range(1, 9):
        assert await deploy(state, number)

    assert [spec.deploy_id for spec in await state.history.versions("shop")] == ["d8", "d7", "d6", "d5", "d4", "d3"]
    assert await codes(state) == {"v8", "v7", "v6", "v5", "v4", "v3"}


@pytest.mark.leaves(code=2)
async def test_a_change_that_is_no_version_replaces_the_present_one(state):
    """Scaling ten times must not push the version to go back to out of the history."""
    await deploy(state, 1)
    await deploy(state, 2)
    await deploy(state, 3, is_new=False)

    assert [spec.deploy_id for spec in await state.history.versions("shop")] == ["d3", "d1"]
    assert await codes(state) == {"v3", "v1"}


@pytest.mark.leaves(code=2)
async def test_what_has_changed_since_it_was_read_is_not_written_over(state):
    """Two people deploy at the same time: neither's change is lost without a word."""
    await deploy(state, 1)
    before = await state.history.present("shop")
    await deploy(state, 2)

    assert not await state.want({"shop": Wish(before, version(3))}, {"v3": b"code"})
    assert not await state.want({"shop": Wish(Read(), version(3))}, {"v3": b"code"})
    assert (await state.app("shop")).deploy_id == "d2"
    assert await codes(state) == {"v1", "v2"}


@pytest.mark.leaves(code=2)
async def test_several_applications_change_together_or_not_at_all(state):
    """Half a config file deployed is a state that nobody has ever tested."""
    await deploy(state, 1, "one")
    await deploy(state, 2, "two")
    one, two = [await state.history.present(name) for name in ("one", "two")]
    wishes = {"one": Wish(one, version(3, "one")), "two": Wish(Read(b"as it was once"), version(4, "two"))}

    assert not await state.want(wishes, {"v3": b"code", "v4": b"code"})
    assert {name: app.deploy_id for name, app in (await state.wanted()).items()} == {"one": "d1", "two": "d2"}

    wishes = {"one": Wish(one, None), "two": Wish(two, None)}
    assert await state.want(wishes, {})
    assert await state.wanted() == {}


@pytest.mark.leaves(code=1)
async def test_a_deleted_application_has_no_history(state):
    """Another one of that name begins anew. Its present code is the leader's to drop: replicas may still start."""
    await deploy(state, 1)
    await deploy(state, 2)
    await state.delete("shop")

    assert await state.history.versions("shop") == []
    assert await codes(state) == {"v2"}


@pytest.mark.leaves(code=1)
async def test_each_application_that_changes_is_told(state):
    """Controllers and those who wait look when they hear of it."""
    heard: list[bytes] = []

    async def listen(pipe):
        await pipe.call("SUBSCRIBE", state.keys.events)

    events = Link(state.link.endpoint, "test-events", on_up=listen, on_message=heard.append)
    await events.ready()
    await deploy(state, 1)
    await state.delete("shop")
    await until(lambda: len(heard) == 2)
    await events.close()
    assert heard == [b"deploy shop", b"delete shop"]


@pytest.mark.leaves(code=1)
async def test_code_that_an_application_or_its_history_has_is_not_dropped(state):
    """The same class in two applications is one version: deleting the one must not break the other."""
    await deploy(state, 1, "one")
    await deploy(state, 1, "two")
    await state.delete("one")

    await state.drop_code(["v1"])
    assert await state.code("v1") == b"code 1"


@pytest.mark.leaves(code=1)
async def test_code_is_not_dropped_while_somebody_deploys_it(state, monkeypatch):
    """Between the look whether anyone wants it and the drop, a deploy may come: its replicas would find no code."""
    await deploy(state, 1)
    await state.delete("shop")
    kept = state.history._kept

    async def look_then_deploy() -> set[str]:
        found: set[str] = await kept()
        if not found:
            await deploy(state, 1)
        return found

    monkeypatch.setattr(state.history, "_kept", look_then_deploy)
    await state.drop_code(["v1"])
    assert await state.code("v1") == b"code 1"


async def test_code_that_nobody_has_is_dropped(state):
    """Every version that was ever deployed would stay for ever."""
    await deploy(state, 1)
    await state.delete("shop")
    await state.drop_code(["v1"])
    with pytest.raises(CallRejected, match="version v1 is not in Redis any more"):
        await state.code("v1")


@pytest.mark.leaves(code=1)
async def test_forged_versions_are_left_out(state, server):
    """Whoever can write to Redis must not choose what a rollback runs."""
    await deploy(state, 1)
    signer = KeyRing([b"some other secret key"]).signer(Direction.CONTROL, state.keys.scope("app", "shop"))
    server.rpush(state.keys.history("shop"), seal_control(version(9).to_json(), signer), b"no envelope")

    assert [spec.deploy_id for spec in await state.history.versions("shop")] == ["d1"]


@pytest.mark.leaves(code=1)
async def test_many_who_deploy_at_once_all_get_through(state):
    """Ten web servers start together, and each deploys: the last one wins, none fails."""
    await asyncio.gather(
        *(state.deploy(version(1).model_copy(update={"deploy_id": f"by{n}"}), {"v1": b"code"}) for n in range(10))
    )

    assert len(await state.history.versions("shop")) == KEPT_VERSIONS
