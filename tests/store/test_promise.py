"""The promise as a property: whatever happens in whatever order, every call that was put is answered exactly once.

A model of the queue in plain dicts walks beside the real one; hypothesis looks for a walk on which they part.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterator
from typing import TypeVar

import hypothesis
import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from qserve.config import Settings
from qserve.errors import ReplicaDiedError
from qserve.store import calls, replies
from qserve.store.calls import Entry, Finished
from qserve.store.connection import endpoint_of
from qserve.store.link import Link
from qserve.wire.keys import GROUP, deployment_keys
from qserve.wire.signing import KeyRing
from tests.store.leftovers import clean, survey
from tests.store.queue import Ear, Queue, id_of, number_of, numbers_of

T = TypeVar("T")
MAX_RETRIES = 2
replicas = st.sampled_from(["r1", "r2", "r3"])
GAVE_UP = "gave up"


class Life(RuleBasedStateMachine):
    """Calls are put, taken, finished, lost, handed back and finished late, in any order.

    live     entries that are in the streams, by stream: entry id -> number of the call
    held     what each replica holds
    stale    entries that a replica once held: it may come back and finish them
    answers  what each answered call must have been answered with
    """

    def __init__(self, runner: asyncio.Runner, settings: Settings, server: redis.Redis, link: Link) -> None:
        super().__init__()
        self.runner = runner
        self.settings = settings
        self.server = server
        self.keys = deployment_keys(settings.namespace, "app", "Echo")
        self.queue = Queue(link, KeyRing(settings.secrets), self.keys)
        self.ear = Ear(link.endpoint, self.queue.inbox)
        self.do(self.queue.open())
        self.do(self.ear.open())
        self.known: list[int] = []
        self.live: dict[str, dict[bytes, int]] = {self.keys.front: {}, self.keys.calls: {}}
        self.held: dict[str, dict[bytes, Entry]] = {"r1": {}, "r2": {}, "r3": {}}
        self.stale: dict[bytes, Entry] = {}
        self.answers: dict[int, str] = {}
        self.last: list[Finished] = []
        self.dead = 0
        self.serial = 0

    def do(self, work: Awaitable[T]) -> T:
        """Run one operation on the real queue."""

        async def run() -> T:
            return await work

        return self.runner.run(run())

    # What may happen

    @rule(fresh=st.integers(1, 3), again=st.integers(0, 3), shuffle=st.randoms(use_true_random=False))
    def put(self, fresh: int, again: int, shuffle) -> None:
        """A batch of new calls, with some that were sent before."""
        new = list(range(len(self.known), len(self.known) + fresh))
        old = shuffle.sample(self.known, min(again, len(self.known)))
        batch = new + old
        shuffle.shuffle(batch)

        assert self.do(self.queue.put(*batch))[0] == len(batch)

        self.add([number for number in batch if number in new])

    @rule(fresh=st.integers(1, 3), room=st.integers(0, 3))
    def put_into_a_bounded_queue(self, fresh: int, room: int) -> None:
        """Only as many are taken as there is room for."""
        new = list(range(len(self.known), len(self.known) + fresh))
        limit = self.waiting() + room

        taken = self.do(self.queue.put(*new, limit=limit))[0]

        assert taken == min(fresh, room)
        self.add(new[:taken])

    @rule(replica=replicas, count=st.integers(1, 3))
    def claim(self, replica: str, count: int) -> None:
        """A replica takes calls: handed-back ones first, each stream in its order."""
        expected = []
        for stream in (self.keys.front, self.keys.calls):
            running = {entry_id for entries in self.held.values() for entry_id in entries}
            expected += [number for entry_id, number in self.live[stream].items() if entry_id not in running][:count]

        entries = self.do(self.queue.claim(replica, count))

        assert numbers_of(entries) == expected
        self.held[replica].update((entry.entry_id, entry) for entry in entries)

    @precondition(lambda self: self.stale or any(self.held.values()))
    @rule(data=st.data())
    def finish(self, data) -> None:
        """Replies for a batch of entries: some are held, of some the sender only believes so."""
        mine = {entry_id: entry for entries in self.held.values() for entry_id, entry in entries.items()}
        at_hand = {**self.stale, **mine}
        first = data.draw(st.sampled_from(sorted(at_hand)))
        stream = at_hand[first].stream
        others = sorted(entry_id for entry_id, entry in at_hand.items() if entry.stream == stream)
        chosen = dict.fromkeys([first, *data.draw(st.lists(st.sampled_from(others), max_size=3))])
        self.last = [self.finished(at_hand[entry_id]) for entry_id in chosen]

        fenced = self.do(self.queue.store(self.last))

        accepted = [done for done in self.last if done.entry.entry_id in self.live[stream]]
        assert fenced == len(self.last) - len(accepted)
        for done in accepted:
            self.answer(done.entry, f"{done.reply!r}")

    @precondition(lambda self: self.last)
    @rule()
    def send_the_last_replies_again(self) -> None:
        """The confirmation was lost."""
        assert self.do(self.queue.store(self.last)) == len(self.last)

    @rule(replica=replicas, charge=st.booleans())
    def lose(self, replica: str, charge: bool) -> None:  # noqa: FBT001 (hypothesis passes it by its name)
        """A replica dies, or drains, and its worker takes its calls; it may still finish them late."""
        held = self.held[replica]
        moved = self.do(self.queue.reclaimer(MAX_RETRIES).all_of(replica, "SIGKILL", charge=charge))

        assert moved == len(held)
        for stream in (self.keys.front, self.keys.calls):
            for entry_id in sorted(held, key=sequence):
                if held[entry_id].stream == stream:
                    self.move(held[entry_id], charge)
        self.stale |= held
        self.held[replica] = {}

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def hand_one_back(self, data) -> None:
        """A replica got more than it has slots for."""
        replica = data.draw(st.sampled_from([name for name, entries in self.held.items() if entries]))
        entry = self.held[replica][data.draw(st.sampled_from(sorted(self.held[replica])))]

        assert self.do(self.queue.hand_back(replica, entry, charge=False)) == 1
        assert self.do(self.queue.hand_back(replica, entry, charge=False)) == 0

        del self.held[replica][entry.entry_id]
        self.stale[entry.entry_id] = entry
        self.move(entry, charge=False)

    @rule(stream=st.sampled_from(["front", "calls"]))
    def destroy_the_group(self, stream: str) -> None:
        """Somebody's XGROUP DESTROY, or a server that lost it: all that was given out waits again."""
        name = self.keys.front if stream == "front" else self.keys.calls
        self.server.xgroup_destroy(name, GROUP)
        self.do(self.queue.open())
        for entries in self.held.values():
            for entry in [entry for entry in entries.values() if entry.stream == name]:
                self.stale[entry.entry_id] = entries.pop(entry.entry_id)

    @rule(replica=replicas)
    def reap(self, replica: str) -> None:
        """A consumer is forgotten when it holds nothing, and never else."""
        assert self.do(calls.reap(self.queue.link, self.keys, replica)) == (not self.held[replica])

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def watch(self, data) -> None:
        """Another process asks for a call, and to be told."""
        number = data.draw(st.sampled_from(self.known))
        record = self.do(replies.watch(self.queue.link, self.keys, id_of(number), "watcher"))

        assert record is not None
        assert replies.is_reply(record) == (number in self.answers)

    # What must hold, always

    @invariant()
    def the_streams_hold_what_is_not_answered(self) -> None:
        """XLEN is waiting and running, pending is running: exact, in constant time."""
        live = sum(len(entries) for entries in self.live.values())
        running = sum(len(entries) for entries in self.held.values())
        assert self.do(self.queue.lengths()) == (live, running)

    @invariant()
    def each_record_names_its_entry_or_holds_the_first_reply(self) -> None:
        """No call is ever without either: its caller would wait for ever."""
        if not self.known:
            return
        names = [self.keys.record(id_of(number)) for number in self.known]
        records = self.do(replies.fetch(self.queue.link, names))
        for number, record in zip(self.known, records, strict=True):
            assert record is not None
            if number not in self.answers:
                at = replies.place(self.keys, record)
                assert self.live[at.stream][at.entry_id.encode()] == number
            elif self.answers[number] != GAVE_UP:
                assert f"{record!r}" == self.answers[number]

    def teardown(self) -> None:
        """The dust settles: all calls run, and each caller has heard exactly once."""
        try:
            self.settle()
        finally:
            self.do(self.ear.close())
            clean(self.server, self.settings.namespace)

    def settle(self) -> None:
        """Finish all that is left, and count."""
        for replica in self.held:
            self.lose(replica, charge=False)
        while entries := self.do(self.queue.claim("r1")):
            for entry in entries:
                assert self.do(self.queue.finish(entry)) == 0
                self.answer(entry, "settled")
        for replica in self.held:
            self.do(self.queue.leave(replica))

        heard = Counter(int.from_bytes(call_id) for call_id, _ in self.do(self.ear.heard()))
        assert heard == Counter(self.known)
        assert self.answers.keys() == set(self.known)
        expected = {"replies": len(self.known), "dead": self.dead}
        assert survey(self.server, self.settings.namespace) == {kind: n for kind, n in expected.items() if n}

    # The model

    def waiting(self) -> int:
        """How many calls wait."""
        live = sum(len(entries) for entries in self.live.values())
        return live - sum(len(entries) for entries in self.held.values())

    def add(self, numbers: list[int]) -> None:
        """These calls were put, in this order."""
        for number in numbers:
            self.known.append(number)
            self.place(number)
        self.known.sort()

    def place(self, number: int) -> None:
        """Note the entry that the call's record names."""
        record = self.do(self.queue.record(number))
        assert record is not None
        at = replies.place(self.keys, record)
        self.live[at.stream][at.entry_id.encode()] = number

    def move(self, entry: Entry, charge: bool) -> None:  # noqa: FBT001 (an attempt's charge has no other name)
        """An entry was handed back, or given up."""
        number = self.live[entry.stream].pop(entry.entry_id)
        if charge and entry.attempt > MAX_RETRIES:
            self.answers[number] = GAVE_UP
            self.dead += 1
            with pytest.raises(ReplicaDiedError):
                self.do(self.queue.answer(number))
        else:
            self.place(number)

    def answer(self, entry: Entry, reply: str) -> None:
        """An entry was finished: whoever holds it loses it."""
        number = self.live[entry.stream].pop(entry.entry_id)
        assert number not in self.answers
        assert number == number_of(entry)
        self.answers[number] = reply
        for entries in self.held.values():
            entries.pop(entry.entry_id, None)

    def finished(self, entry: Entry) -> Finished:
        """A reply unlike any other."""
        self.serial += 1
        return self.queue.finished(entry, f"reply {self.serial}")


def sequence(entry_id: bytes) -> tuple[int, ...]:
    """An entry id as the stream orders it."""
    return tuple(int(part) for part in entry_id.split(b"-"))


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """An event loop for a test that is not asynchronous itself."""
    with asyncio.Runner() as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(300)  # when it fails, finding the shortest walk that fails takes its time
def test_every_call_is_answered_exactly_once(runner, settings, server):
    """At least once is what the queue does; exactly once is what the caller is promised to hear."""

    async def connect() -> Link:
        link = Link(endpoint_of(settings), "test-life")
        await link.ready()
        return link

    link = runner.run(connect())

    class Connected(Life):
        def __init__(self) -> None:
            super().__init__(runner, settings, server, link)

    profile = hypothesis.settings(max_examples=30, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(Connected, settings=profile)
    runner.run(link.close())
