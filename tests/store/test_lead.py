"""lead.lua, resign.lua and the lease on top of them: at most one leader, and each reign has a higher term."""

from __future__ import annotations

import pytest

from qserve.config import LEASE_S
from qserve.store import scripts
from qserve.store.lease import LeaderLease
from qserve.wire.keys import ClusterKeys
from tests.store.until import until


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def cluster_keys(settings):
    """The keys of the namespace's control plane."""
    return ClusterKeys(settings.namespace)


@pytest.fixture
def candidate(link, cluster_keys):
    """Makes a controller's lease."""

    def make(name, clock=None):
        return LeaderLease(link, cluster_keys, name, clock or Clock())

    return make


@pytest.mark.leaves(leader=1)
async def test_the_first_controller_leads_and_a_second_stands_by(candidate):
    """Two leaders would start every replica twice."""
    first, second = candidate("a"), candidate("b")

    assert await first.renew()
    assert not await second.renew()

    assert (first.term, second.term) == (1, 0)


@pytest.mark.leaves(leader=1)
async def test_renewing_goes_on_with_the_same_term(candidate, server, cluster_keys):
    """The term names a reign: writes under it stay valid as long as it lasts."""
    leader = candidate("a")
    await leader.renew()
    server.pexpire(cluster_keys.leader, 100)

    assert await leader.renew()

    assert leader.term == 1
    assert server.pttl(cluster_keys.leader) > 1000


@pytest.mark.leaves(leader=1)
async def test_a_lease_that_lapsed_begins_a_new_reign(candidate, server, cluster_keys):
    """Also for the one that led before: what it decided under the old term must not be written under the new one."""
    leader = candidate("a")
    await leader.renew()
    server.pexpire(cluster_keys.leader, 1)
    await until(lambda: not server.exists(cluster_keys.leader))

    assert await leader.renew()
    assert leader.term == 2


@pytest.mark.leaves(leader=1)
async def test_terms_increase_from_leader_to_leader(candidate):
    """A higher term wins every argument about who led last."""
    terms = []
    for name in ("a", "b", "a"):
        leader = candidate(name)
        assert await leader.renew()
        terms.append(leader.term)
        await leader.resign()
    assert await candidate("c").renew()

    assert terms == [1, 2, 3]


@pytest.mark.leaves(leader=1)
async def test_who_resigns_is_followed_at_once(candidate):
    """A rolling upgrade of the autoscalers must not cost a lease's time without a leader."""
    old, new = candidate("a"), candidate("b")
    await old.renew()

    await old.resign()

    assert not old.held
    assert await new.renew()


@pytest.mark.leaves(leader=1)
async def test_only_the_holder_can_resign(candidate, server, cluster_keys):
    """A controller whose reign is over must not end its successor's."""
    old, new = candidate("a"), candidate("b")
    await old.renew()
    server.delete(cluster_keys.leader)
    await new.renew()

    await old.resign()
    await candidate("never-led").resign()

    assert server.get(cluster_keys.leader) == new.holder.encode()


async def test_resigning_twice_gives_up_once(link, candidate, cluster_keys):
    """Drains may be asked for twice."""
    leader = candidate("a")
    await leader.renew()
    holder = leader.holder

    assert await link.script(scripts.RESIGN, [cluster_keys.leader], [holder]) == 1
    assert await link.script(scripts.RESIGN, [cluster_keys.leader], [holder]) == 0


@pytest.mark.leaves(leader=1)
async def test_the_lease_is_trusted_for_less_than_the_server_keeps_it(candidate):
    """The leader must stop acting before another one can start."""
    clock = Clock()
    leader = candidate("a", clock)
    await leader.renew()

    clock.now += LEASE_S - 0.6
    assert leader.held
    clock.now += 0.2
    assert not leader.held


@pytest.mark.leaves(leader=1)
async def test_a_slow_answer_does_not_stretch_the_lease(link, cluster_keys):
    """The server counts from when it renewed, which is some time after the attempt began: only that time is sure."""
    clock = SlowAnswer(LEASE_S - 0.4)
    leader = LeaderLease(link, cluster_keys, "a", clock)

    assert not await leader.renew()
    assert leader.term == 1


@pytest.mark.leaves(leader=1)
async def test_losing_the_leadership_shows_at_the_next_renewal(candidate, server, cluster_keys):
    """A leader that was paused learns that another one leads."""
    old, new = candidate("a"), candidate("b")
    await old.renew()
    server.delete(cluster_keys.leader)
    await new.renew()

    assert not await old.renew()
    assert (old.term, old.held) == (0, False)


@pytest.mark.leaves(leader=1)
async def test_a_leader_whose_write_was_refused_stands_by_at_once(candidate, server, cluster_keys):
    """It need not wait for its lease to run out to know that it leads no more; its next renewal may win a new reign."""
    old, new = candidate("a"), candidate("b")
    await old.renew()
    server.delete(cluster_keys.leader)
    await new.renew()

    old.lose()

    assert not old.held
    assert not await old.renew()
    await new.resign()
    assert await old.renew()
    assert old.term == 3


@pytest.mark.leaves(leader=1)
async def test_a_server_without_memory_keeps_its_leader(candidate, full):
    """Losing the leader on top would end every replica just when their work would free memory."""
    leader = candidate("a")
    await leader.renew()
    with full():
        assert await leader.renew()


class SlowAnswer:
    """A clock that is read when the attempt starts, and next when its answer has been under way for `late_s`."""

    def __init__(self, late_s: float) -> None:
        self._late_s = late_s
        self._reads = 0

    def __call__(self) -> float:
        self._reads += 1
        return 1000.0 if self._reads == 1 else 1000.0 + self._late_s
