"""Names of keys and ids of calls: any process must be able to make and to read them."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qserve.wire.keys import CallIds, ClusterKeys, deployment_keys, parse_request_id, request_id

NAMES = st.text("Adder_-09é", min_size=1, max_size=20)
HEX = "00" * 16


@settings(max_examples=50, deadline=None)
@given(NAMES, NAMES, st.binary(min_size=16, max_size=16))
@example("app", "a.dotted.name", bytes(16))
def test_a_request_id_names_its_call(app: str, deployment: str, call_id: bytes):
    """It goes to a browser or a database, and comes back to a process that knows nothing else."""
    assert parse_request_id(request_id(app, deployment, call_id)) == (app, deployment, call_id)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        HEX,
        f"app.{HEX}",
        f".Adder.{HEX}",
        f"app..{HEX}",
        f"app.Adder.{HEX[:-2]}",
        f"app.Adder.{HEX}00",
        f"app.Adder.{HEX[:-2]}zz",
        f"app.Adder.{HEX[:-2]} 00",
        f"app.Adder.{HEX}\n",
        f"app}}:x.Adder.{HEX}",
        f"app.Adder:calls.{HEX}",
        f"app.Ad{{der.{HEX}",
        None,
        41,
        b"app.Adder." + HEX.encode(),
    ],
)
def test_what_is_no_request_id_is_refused(text: object):
    """Ids come back from browsers: they may name a call and no other key."""
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not a request id: it looks like")):
        parse_request_id(text)  # type: ignore[arg-type]  # users pass anything


def test_call_ids_are_in_the_order_of_time():
    """Dead letters and records can be sorted by age without opening them."""
    ids = CallIds()
    made = [ids.next(now_ms) for now_ms in (0, 1, 2, 1_700_000_000_000, 2**48 - 1)]

    assert made == sorted(made)
    assert {len(call_id) for call_id in made} == {16}


def test_call_ids_are_unique_across_threads():
    """Two calls of one id would be one call: the second would get the first one's reply."""
    ids = CallIds()
    with ThreadPoolExecutor(8) as threads:
        made = [
            call_id for some in threads.map(lambda _: [ids.next(7) for _ in range(500)], range(8)) for call_id in some
        ]

    assert len(set(made)) == len(made) == 4000


def test_call_ids_are_unique_across_processes():
    """Processes count by themselves, and start within the same millisecond."""
    assert len({CallIds().next(7)[:12] for _ in range(100)}) == 100


def test_all_keys_of_a_deployment_share_one_slot():
    """A script that touches keys of two slots fails on a Redis cluster."""
    keys = deployment_keys("ns", "app", "Adder")
    names = [
        keys.front,
        keys.calls,
        keys.dead,
        keys.quarantine,
        keys.record(bytes(16)),
        keys.lease("r"),
        keys.lease_prefix,
    ]

    assert {name.split("{")[1].split("}")[0] for name in names} == {"ns:app:Adder"}


def test_all_keys_of_a_namespace_share_one_slot():
    """The leader's writes check its term in the same script."""
    keys = ClusterKeys("ns")
    names = [keys.apps, keys.statuses, keys.nodes, keys.replicas, keys.leader, keys.term, keys.generation, keys.events]
    names += [keys.code("v"), keys.assignments("n"), keys.node_lease("n")]

    assert {name.split("{")[1].split("}")[0] for name in names} == {"ns"}
    assert len(set(names)) == len(names)


def test_namespaces_do_not_meet():
    """Tests, staging and production may share one server."""
    one, other = deployment_keys("one", "app", "Adder"), deployment_keys("other", "app", "Adder")

    assert one.calls != other.calls
    assert one.scope != other.scope


def test_a_deployments_keys_are_made_once():
    """Their names are needed for every call."""
    assert deployment_keys("ns", "app", "Adder") is deployment_keys("ns", "app", "Adder")
