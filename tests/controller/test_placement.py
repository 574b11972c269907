"""Which node gets a replica: spread out, within what each node and each deployment allows, and why none when none."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qserve.controller.placement import place, why_not
from qserve.spec import Assignment, DeploymentSpec, NodeRecord
from tests.controller.world import node, spec


def fill(
    wanted: DeploymentSpec, nodes: list[NodeRecord], assigned: list[Assignment], count: int
) -> Counter[str | None]:
    """Place so many replicas one after the other; how many each node got."""
    chosen: Counter[str | None] = Counter()
    for _ in range(count):
        node_id = place(wanted, nodes, assigned)
        chosen[node_id] += 1
        if node_id is not None:
            assigned.append(assignment(wanted, node_id, len(assigned)))
    return chosen


def assignment(wanted: DeploymentSpec, node_id: str, number: int = 0) -> Assignment:
    """A replica of `wanted` on that node."""
    return Assignment(
        replica_id=f"{wanted.name}-{number}",
        node_id=node_id,
        app=wanted.app,
        deployment=wanted.name,
        version=wanted.version,
    )


def test_replicas_are_spread_over_nodes():
    """A host that fails takes as few of them along as can be."""
    assert fill(spec(), [node("n1"), node("n2"), node("n3")], [], 7) == {"n1": 3, "n2": 2, "n3": 2}


def test_among_equals_the_emptiest_node_is_chosen():
    """Single replicas of many deployments do not all end on the first host."""
    nodes = [node("n1"), node("n2")]
    others = [assignment(spec(name), "n1") for name in ("A", "B")] + [assignment(spec("C"), "n2")]

    assert place(spec("New"), nodes, others) == "n2"


def test_spreading_a_deployment_goes_before_filling_the_emptiest():
    """Two replicas of one deployment side by side are one failure, however much else runs elsewhere."""
    nodes = [node("n1"), node("n2")]
    others = [assignment(spec("Echo"), "n1"), *(assignment(spec(name), "n2") for name in "ABC")]

    assert place(spec("Echo"), nodes, others) == "n2"


def test_a_deployment_of_another_application_is_another_one():
    """Names are unique within an application only."""
    nodes = [node("n1"), node("n2")]
    others = [assignment(spec(app="other", max_replicas_per_node=1), "n1")]

    assert fill(spec(max_replicas_per_node=1), nodes, others, 2) == {"n2": 1, "n1": 1}


def test_no_more_than_max_replicas_per_node():
    """What is left over waits for another host."""
    nodes = [node("n1"), node("n2")]

    assert fill(spec(max_replicas_per_node=2), nodes, [], 6) == {"n1": 2, "n2": 2, None: 2}


def test_a_draining_node_gets_nothing():
    """It is on its way out."""
    assert fill(spec(), [node("n1", draining=True), node("n2")], [], 2) == {"n2": 2}
    assert place(spec(), [node("n1", draining=True)], []) is None


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
    assert (place(spec(), [node("n1", deployments=accepted)], []) == "n1") is takes


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.booleans(), st.booleans()), max_size=6),
    st.integers(1, 4),
    st.integers(0, 20),
)
def test_placing_keeps_every_limit_and_stays_even(nodes: dict[str, tuple[bool, bool]], most: int, count: int):
    """Whatever nodes there are: within the limit, only where allowed, nobody two ahead, None only without room."""
    wanted = spec(max_replicas_per_node=most)
    records = [
        node(name, draining=draining, deployments=("Other",) if picky else ())
        for name, (draining, picky) in nodes.items()
    ]
    allowed = [name for name, (draining, picky) in nodes.items() if not draining and not picky]
    chosen = fill(wanted, records, [], count)
    unplaced = chosen.pop(None, 0)

    assert unplaced == max(0, count - most * len(allowed))
    assert set(chosen) <= set(allowed)
    counts = [chosen[name] for name in allowed] or [0]
    assert max(counts) <= most
    assert max(counts) - min(counts) <= 1


def test_no_worker_is_said_so():
    """With the command that starts one."""
    assert why_not(spec(), []) == (
        "No worker has joined: start one with `qserve worker` on a host that reaches the same Redis."
    )


def test_lists_and_drains_are_said_so():
    """Who reads it knows which of the workers to look at."""
    nodes = [node("n1", draining=True), node("n2", deployments=("Other",)), node("n3", deployments=("Other",))]

    assert why_not(spec(), nodes) == "None of 3 workers takes it: 1 drain, the others have --deployments lists."


def test_the_limit_per_node_is_said_so():
    """The mend is another host, or a higher limit."""
    nodes = [node("n1"), node("n2"), node("n3", draining=True)]

    assert why_not(spec(max_replicas_per_node=1), nodes) == (
        "All 2 workers that take it have max_replicas_per_node=1 of it."
    )
