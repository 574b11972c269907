"""Which node gets a replica: within what each node offers and each deployment allows, and why none when none."""

from collections import Counter
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qserve.controller.placement import Rooms, Setback, has_labels
from qserve.spec import Assignment, DeploymentSpec, NodeRecord
from tests.controller.world import node, spec

GPU = {"num_cpus": 0, "num_gpus": 1}
NUMBERS = count()


def rooms(*nodes: NodeRecord, taken: dict[str, list[DeploymentSpec]] | None = None, **setbacks: Setback) -> Rooms:
    """These nodes, with replicas of these deployments on them; setbacks of `Echo`, by node."""
    hosted = [assignment(of, node_id) for node_id, there in (taken or {}).items() for of in there]
    known = {("app", "Echo", node_id): setback for node_id, setback in setbacks.items()}
    return Rooms({record.node_id: record for record in nodes}, [(replica, ()) for replica in hosted], known, now=1000.0)


def fill(wanted: DeploymentSpec, there: Rooms, number: int) -> Counter[str | None]:
    """Place so many replicas one after the other; how many each node got."""
    chosen: Counter[str | None] = Counter()
    for _ in range(number):
        node_id = there.place(wanted)
        chosen[node_id] += 1
        if node_id is not None:
            there.take(assignment(wanted, node_id))
    return chosen


def assignment(wanted: DeploymentSpec, node_id: str) -> Assignment:
    """A replica of `wanted` on that node."""
    return Assignment(
        replica_id=f"{wanted.name}-{next(NUMBERS)}",
        node_id=node_id,
        app=wanted.app,
        deployment=wanted.name,
        version=wanted.version,
        resources=wanted.config.resources,
    )


def taking(**amounts: Any) -> DeploymentSpec:
    """`Echo`, each replica of which takes this of its node."""
    return spec(ray_actor_options=amounts)


def offering(node_id: str, **amounts: float) -> NodeRecord:
    """A node that offers this."""
    return node(node_id, resources=amounts)


# Spread and packed


def test_replicas_are_spread_over_nodes():
    """A host that fails takes as few of them along as can be."""
    assert fill(spec(), rooms(node("n1"), node("n2"), node("n3")), 7) == {"n1": 3, "n2": 2, "n3": 2}


def test_among_equals_the_emptiest_node_is_chosen():
    """Single replicas of many deployments do not all end on the first host."""
    there = rooms(node("n1"), node("n2"), taken={"n1": [spec("A"), spec("B")], "n2": [spec("C")]})

    assert there.place(spec("New")) == "n2"


def test_the_emptiest_is_the_one_with_the_largest_part_free():
    """Ten replicas on a large host leave more room than five on a small one."""
    large, small = offering("large", num_cpus=64), offering("small", num_cpus=8)
    there = rooms(large, small, taken={"large": [spec("A")] * 10, "small": [spec("A")] * 5})

    assert there.place(spec("New")) == "large"


def test_spreading_a_deployment_goes_before_filling_the_emptiest():
    """Two replicas of one deployment side by side are one failure, however much else runs elsewhere."""
    there = rooms(node("n1"), node("n2"), taken={"n1": [spec("Echo")], "n2": [spec(name) for name in "ABC"]})

    assert there.place(spec("Echo")) == "n2"


@pytest.mark.parametrize("strategy", ["PACK", "STRICT_PACK"])
def test_packing_fills_one_node_before_the_next(strategy: str):
    """Hosts that stay empty can be given back."""
    there = rooms(offering("n1", num_cpus=3), offering("n2", num_cpus=3), offering("n3", num_cpus=3))

    assert fill(spec(placement_group_strategy=strategy), there, 5) == {"n1": 3, "n2": 2}


def test_a_deployment_of_another_application_is_another_one():
    """Names are unique within an application only."""
    there = rooms(node("n1"), node("n2"), taken={"n1": [spec(app="other", max_replicas_per_node=1)]})

    assert fill(spec(max_replicas_per_node=1), there, 2) == {"n2": 1, "n1": 1}


# What fits


def test_a_node_is_never_given_more_than_it_offers():
    """Four models of 3 GB do not fit in 8 GB: the third start would kill the first two."""
    there = rooms(offering("n1", num_cpus=8, memory=8e9), offering("n2", num_cpus=1, memory=8e9))

    assert fill(taking(num_cpus=1, memory=3e9), there, 4) == {"n1": 2, "n2": 1, None: 1}


def test_ten_tenths_are_one():
    """In binary they are a little less or more: the tenth replica must fit, and the eleventh not."""
    assert fill(taking(num_cpus=0.1), rooms(offering("n1", num_cpus=1)), 11) == {"n1": 10, None: 1}


def test_a_custom_resource_keeps_replicas_to_the_hosts_that_have_it():
    """A licence dongle, a camera, a fast disk."""
    there = rooms(offering("n1", num_cpus=8), offering("n2", num_cpus=8, camera=1))

    assert fill(taking(resources={"camera": 0.5}), there, 3) == {"n2": 2, None: 1}


def test_a_replica_that_takes_nothing_fits_everywhere():
    """`num_cpus=0` is for those that only wait for others."""
    assert fill(taking(num_cpus=0), rooms(offering("n1")), 3) == {"n1": 3}


def test_no_more_than_max_replicas_per_node():
    """What is left over waits for another host."""
    assert fill(spec(max_replicas_per_node=2), rooms(node("n1"), node("n2")), 6) == {"n1": 2, "n2": 2, None: 2}


def test_a_draining_node_gets_nothing():
    """It is on its way out."""
    assert fill(spec(), rooms(node("n1", draining=True), node("n2")), 2) == {"n2": 2}
    assert rooms(node("n1", draining=True)).place(spec()) is None


def test_a_node_of_another_protocol_gets_nothing():
    """Its replicas would not read our calls."""
    assert rooms(node("n1", protocol=99)).place(spec()) is None


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        ((), True),
        (("Echo",), True),
        (("app",), True),
        (("app.Echo",), True),
        (("Other", "app.Echo"), True),
        (("Other",), False),
        (("other.Echo",), False),
        (("app.Other",), False),
        (("Ech",), False),
    ],
)
def test_a_node_takes_what_its_list_names(accepted: tuple[str, ...], takes: bool):  # noqa: FBT001 (a column of the table)
    """`--deployments` keeps a host with a GPU for those that need it; application, deployment or both name one."""
    assert (rooms(node("n1", deployments=accepted)).place(spec()) == "n1") is takes


@pytest.mark.parametrize(
    ("condition", "matching"),
    [
        ("eu", {"eu"}),
        ("!eu", {"us", "asia", None}),
        ("in(eu, us)", {"eu", "us"}),
        ("!in(eu,us)", {"asia", None}),
    ],
)
def test_a_label_selector_chooses_nodes(condition: str, matching: set[str | None]):
    """Ray's four forms: a value, not a value, one of several, none of several. None is a node without the label."""
    zones: list[str | None] = ["eu", "us", "asia", None]
    chosen = {zone for zone in zones if has_labels({} if zone is None else {"zone": zone}, {"zone": condition})}

    assert chosen == matching


def test_all_labels_must_match():
    """Each of them is a wish of its own."""
    wanted = taking(label_selector={"zone": "eu", "disk": "!slow"})
    good = node("n3", labels={"zone": "eu", "disk": "fast"})
    there = rooms(node("n1", labels={"zone": "eu", "disk": "slow"}), node("n2", labels={"disk": "fast"}), good)

    assert fill(wanted, there, 2) == {"n3": 2}


# GPUs


def test_whole_gpus_and_shares_are_counted():
    """Half a GPU each for two replicas, a whole one for another."""
    there = rooms(offering("n1", num_cpus=8, num_gpus=2))

    assert fill(taking(num_gpus=0.5), there, 2) == {"n1": 2}
    assert fill(taking(num_gpus=1), there, 2) == {"n1": 1, None: 1}


def test_a_node_that_says_it_has_a_billion_gpus_holds_nobody_up():
    """Whoever reaches Redis may have written so; the leader must not list them one by one."""
    assert rooms(offering("liar", num_gpus=1e15)).place(taking(**GPU)) == "liar"


def test_shares_left_on_several_gpus_are_no_gpu():
    """Its node would have to refuse it: 0.5 of two devices add up to 1, but no device has it."""
    there = rooms(offering("n1", num_gpus=2))
    for gpu in ("0", "1"):
        there.take(assignment(taking(num_gpus=0.5), "n1"), (gpu,))

    assert there.place(spec(ray_actor_options=GPU)) is None
    assert there.place(spec(ray_actor_options={"num_cpus": 0, "num_gpus": 0.5})) == "n1"
    assert "shares" in there.why_not(spec(ray_actor_options=GPU))


def test_a_gpu_is_expected_to_be_shared_before_the_next_is_begun():
    """Where replicas have not said yet what they got: so their node chooses, and one GPU stays whole."""
    there = rooms(offering("n1", num_gpus=2), taken={"n1": [taking(num_cpus=0, num_gpus=0.5)] * 2})

    assert there.place(spec(ray_actor_options=GPU)) == "n1"


# Setbacks


def test_a_node_that_failed_is_avoided_while_others_fit():
    """A host with a broken driver must not get every replica that it fails again and again."""
    there = rooms(node("n1"), node("n2"), n1=Setback(until_s=1060.0))

    assert fill(spec(), there, 3) == {"n2": 3}


def test_a_node_that_failed_is_better_than_none():
    """With one host there is nowhere else to try."""
    assert rooms(node("n1"), n1=Setback(until_s=1060.0)).place(spec()) == "n1"
    assert rooms(node("n1"), n1=Setback(until_s=1060.0)).place(spec(), everywhere=False) is None


def test_a_node_that_refused_is_not_asked_again_at_once():
    """It knows better what it has; the status tells what it said."""
    there = rooms(
        node("n1"), n1=Setback(until_s=1005.0, refused=True, message="it needs num_gpus=1, and there is none")
    )

    assert there.place(spec()) is None
    assert there.why_not(spec()) == (
        "No node takes another replica of it: n1 refused it: it needs num_gpus=1, and there is none."
    )


def test_a_setback_is_of_one_deployment_and_for_a_while():
    """Others may run there well, and the host may be mended."""
    there = rooms(node("n1"), node("n2"), n1=Setback(until_s=1060.0), n2=Setback(until_s=999.0))

    assert there.place(spec()) == "n2"
    assert there.place(spec("Other")) == "n1"
    assert there.setback_ends_s(("app", "Echo")) == 1060.0


# In words


def test_no_worker_is_said_so():
    """With the command that starts one."""
    assert rooms().why_not(spec()) == (
        "No worker has joined: start one with `qserve worker` on a host that reaches the same Redis."
    )


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (taking(num_cpus=0, num_gpus=1), "needs num_gpus=1; 0 of 2 nodes offer a GPU"),
        (taking(num_cpus=4), "needs num_cpus=4; the most that is free is 2 on big"),
        (taking(num_cpus=1, memory=2**36), "needs memory=64 GiB; the most that is free is 8 GiB on big"),
        (taking(num_cpus=0, resources={"camera": 1}), "needs camera=1; 0 of 2 nodes offer camera"),
        (taking(label_selector={"zone": "eu"}), "2 of 2 nodes have not the labels zone=eu"),
    ],
)
def test_what_is_missing_is_said(wanted: DeploymentSpec, said: str):
    """The mend stands in the message: more of that, or another host."""
    big = offering("big", num_cpus=4, memory=2**33)
    small = offering("small", num_cpus=1, memory=2**32)
    there = rooms(big, small, taken={"big": [spec("A")] * 2})

    assert there.why_not(wanted) == f"No node takes another replica of it: {said}."


def test_what_no_node_has_together_is_said():
    """Each of it is free, but elsewhere."""
    there = rooms(offering("n1", num_cpus=1, memory=2**33), offering("n2", num_cpus=4, memory=2**32))

    assert there.why_not(taking(num_cpus=2, memory=2**33)) == (
        "No node takes another replica of it: needs num_cpus=2, memory=8 GiB; no node has all of that free."
    )


def test_all_reasons_are_said_in_one_line():
    """Who reads it knows which of the workers to look at."""
    there = rooms(
        node("n1", draining=True),
        node("n2", deployments=("Other",)),
        node("n3", deployments=("Other",)),
        node("n4", protocol=99),
        offering("n5", num_cpus=0.5),
    )

    assert there.why_not(spec()) == (
        "No node takes another replica of it: needs num_cpus=1; the most that is free is 0.5 on n5; "
        "1 of 5 nodes are draining; 1 of 5 nodes speak another protocol version; "
        "2 of 5 nodes have --deployments lists without it."
    )


def test_the_limit_per_node_is_said_so():
    """The mend is another host, or a higher limit."""
    wanted = spec(max_replicas_per_node=1)
    there = rooms(node("n1"), node("n2"), taken={"n1": [wanted], "n2": [wanted]})

    assert (
        there.why_not(wanted) == "No node takes another replica of it: 2 of 2 nodes have max_replicas_per_node=1 of it."
    )


# Whatever there is


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.booleans(), st.booleans()), max_size=6),
    st.integers(1, 4),
    st.integers(0, 20),
)
def test_placing_keeps_every_limit_and_stays_even(nodes: dict[str, tuple[bool, bool]], most: int, number: int):
    """Whatever nodes there are: within the limit, only where allowed, nobody two ahead, None only without room."""
    wanted = spec(max_replicas_per_node=most)
    records = [
        node(name, draining=draining, deployments=("Other",) if picky else ())
        for name, (draining, picky) in nodes.items()
    ]
    allowed = [name for name, (draining, picky) in nodes.items() if not draining and not picky]
    chosen = fill(wanted, rooms(*records), number)
    unplaced = chosen.pop(None, 0)

    assert unplaced == max(0, number - most * len(allowed))
    assert set(chosen) <= set(allowed)
    counts = [chosen[name] for name in allowed] or [0]
    assert max(counts) <= most
    assert max(counts) - min(counts) <= 1


AMOUNTS = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0, 2.0])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"num_cpus": st.integers(0, 4), "num_gpus": st.integers(0, 3)}), max_size=4),
    st.lists(st.tuples(AMOUNTS, AMOUNTS, st.booleans()), max_size=25),
)
def test_no_node_is_overbooked(offers: list[dict[str, int]], wishes: list[tuple[float, float, bool]]):
    """Mixed sizes, spread and packed: what is placed always fits, and what is not placed would fit nowhere."""
    nodes = {f"n{i}": offering(f"n{i}", **offer) for i, offer in enumerate(offers)}
    there = rooms(*nodes.values())
    used = {node_id: Counter[str]() for node_id in nodes}
    for number, (cpus, gpus, packed) in enumerate(wishes):
        strategy = "PACK" if packed else None
        wanted = spec(
            f"D{number}",
            ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
            placement_group_strategy=strategy,
        )
        node_id = there.place(wanted)
        if node_id is None:
            assert there.why_not(wanted)
            continue
        there.take(assignment(wanted, node_id))
        used[node_id].update(wanted.config.resources)
    for node_id, record in nodes.items():
        assert all(amount <= record.resources[name] + 1e-5 for name, amount in used[node_id].items())
