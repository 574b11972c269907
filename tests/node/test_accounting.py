"""What fits on a node: exactly what it offers, and never more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qserve.node.accounting import Books

AMOUNTS = st.one_of(st.floats(0.001, 4), st.integers(1, 4).map(float), st.sampled_from([0.1, 0.25, 1 / 3, 0.57]))
SHARES = st.one_of(st.floats(0.001, 1), st.sampled_from([0.1, 0.25, 0.5, 1 / 3, 1.0, 2.0, 3.0]))
NEEDS = st.fixed_dictionaries({}, optional={"num_cpus": AMOUNTS, "num_gpus": SHARES, "tickets": AMOUNTS})
# What a millionth rounds away is all that many shares may have too much, taken together.
ROUNDED = 1e-5


@st.composite
def histories(draw) -> list[tuple[str, dict[str, float] | None]]:
    """Replicas that come with their needs, and leave (None)."""
    names = st.sampled_from([f"r{number}" for number in range(8)])
    made: list[tuple[str, dict[str, float] | None]] = draw(
        st.lists(st.tuples(names, st.one_of(st.none(), NEEDS)), max_size=40)
    )
    return made


@given(histories())
def test_nothing_is_ever_overbooked(history):
    """A host with more replicas than memory, or two models on one GPU, fails in ways that nobody finds."""
    offered = {"num_cpus": 4.0, "tickets": 2.5}
    books = Books(offered, ("0", "1", "2"))
    held: dict[str, tuple[dict[str, float], tuple[str, ...]]] = {}
    for name, needs in history:
        if needs is None:
            books.release(name)
            held.pop(name, None)
        elif name not in held and not books.why_not(needs):
            held[name] = (needs, books.take(name, needs))

        for resource, amount in offered.items():
            assert sum(needs.get(resource, 0.0) for needs, _ in held.values()) <= amount + ROUNDED
        for gpu in books.gpus:
            users = [needs["num_gpus"] for needs, gpus in held.values() if gpu in gpus]
            assert sum(min(1.0, share) for share in users) <= 1.0 + ROUNDED
            assert len(users) == 1 or all(share < 1 for share in users)


@given(NEEDS)
def test_each_replica_gets_the_devices_that_it_asked_for(needs):
    """A replica that asked for none sees none; one that asked for a share sees that device alone."""
    gpus = Books({"num_cpus": 4.0, "tickets": 4.0}, ("0", "1", "2")).take("r", needs)

    share = needs.get("num_gpus", 0.0)
    assert len(gpus) == (share if share >= 1 else int(share > 0))
    assert len(set(gpus)) == len(gpus)


@given(histories())
def test_what_leaves_leaves_nothing_behind(history):
    """A worker runs for months: what it forgets to take back is lost until it is restarted."""
    books = Books({"num_cpus": 4.0, "tickets": 4.0}, ("0", "1"))
    for name, needs in history:
        if needs is not None and not books.why_not(needs):
            books.release(name)
            books.take(name, needs)
    for name, _ in history:
        books.release(name)

    assert books.why_not({"num_cpus": 4.0, "tickets": 4.0, "num_gpus": 2.0}) == ""


@pytest.mark.parametrize("parts", [2, 3, 6, 7, 10, 11, 100])
def test_equal_parts_fill_the_whole(parts):
    """Ten replicas of 0.1 CPUs are one CPU, whatever binary fractions make of it; and then it is full."""
    books = Books({"num_cpus": 1.0}, ("0",))
    for number in range(parts):
        books.take(f"r{number}", {"num_cpus": 1 / parts, "num_gpus": 1 / parts})

    assert books.why_not({"num_cpus": 1 / parts})
    assert books.why_not({"num_gpus": 1 / parts})


def test_two_halves_share_one_gpu():
    """Small models are packed: the other GPU stays whole for one that needs it."""
    books = Books({}, ("0", "1"))

    assert books.take("a", {"num_gpus": 0.5}) == books.take("b", {"num_gpus": 0.5}) == ("0",)
    assert books.take("c", {"num_gpus": 1.0}) == ("1",)


def test_a_share_goes_where_least_is_left():
    """Else shares are strewn over all devices, and no whole one is left."""
    books = Books({}, ("0", "1"))
    books.take("a", {"num_gpus": 0.7})
    books.take("b", {"num_gpus": 0.5})

    assert books.take("c", {"num_gpus": 0.3}) == ("0",)


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        ({"num_cpus": 3.0}, "it needs num_cpus=3, and 2 of 4 is free here"),
        ({"num_cpus": 2.5, "tickets": 1.0}, "it needs num_cpus=2.5, and 2 of 4 is free here; it needs tickets=1, and"),
        ({"tickets": 1.0}, "it needs tickets=1, and this node offers none"),
        ({"num_gpus": 2.0}, "it needs num_gpus=2, and 1 of 2 are wholly free"),
        ({"memory": 2e9}, "it needs memory=2000000000, and 1000000000 of 1000000000 is free here"),
        ({"num_cpus": float("nan")}, "it needs num_cpus="),
    ],
)
def test_a_refusal_names_what_is_missing(needs, says):
    """It is the message on the deployment's status: "does not fit" alone mends nothing."""
    books = Books({"num_cpus": 4.0, "memory": 1e9}, ("0", "1"))
    books.take("r", {"num_cpus": 2.0, "num_gpus": 0.25})

    assert books.why_not(needs).startswith(says)
    with pytest.raises(ValueError, match="it needs"):
        books.take("other", needs)


@pytest.mark.parametrize(
    ("gpus", "share", "says"),
    [
        ((), 1.0, "this node offers none"),
        (("0",), 0.8, "no GPU has that much left: 0.5 is the most"),
        (("0", "1"), 1.5, "a replica takes a share of one GPU, or whole ones"),
    ],
)
def test_a_refusal_for_want_of_gpus_says_how_they_are_taken(gpus, share, says):
    """Half a GPU may be free on each of two devices: that is no whole one."""
    books = Books({}, gpus)
    if gpus:
        books.take("r", {"num_gpus": 0.5})

    assert says in books.why_not({"num_gpus": share})


def test_a_replica_is_counted_once():
    """Two entries under one name would be freed as one."""
    books = Books({"num_cpus": 4.0})
    books.take("r", {"num_cpus": 1.0})

    with pytest.raises(ValueError, match="already"):
        books.take("r", {"num_cpus": 1.0})
