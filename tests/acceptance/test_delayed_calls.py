"""Delayed calls when processes die: what was confirmed runs at its time, or as soon as somebody is there; once."""

from __future__ import annotations

import time

import qserve as serve
from tests.acceptance.ledger import Clerk, Ledger
from tests.support.cluster import eventually


def test_delayed_calls_do_not_need_the_leader(cluster, tmp_path):
    """kill -9 of the leading autoscaler: the other one releases what is due without waiting to lead."""
    ledger = Ledger(tmp_path / "ledger")
    handle = serve.run(Clerk.bind(str(ledger.path)))
    cluster.start_autoscaler()
    responses = [handle.options(delay_s=0.1 * ticket).work.remote(ticket) for ticket in range(1, 30)]
    eventually(lambda: len(ledger.lines("end")) > 3)

    cluster.kill(cluster.autoscalers[0])

    assert serve.get(responses, timeout_s=20) == list(range(1, 30))
    assert set(ledger.starts().values()) == {1}


def test_what_became_due_while_nobody_released_runs_when_somebody_does(cluster, tmp_path):
    """All autoscalers were down: late is right here, and once."""
    ledger = Ledger(tmp_path / "ledger")
    handle = serve.run(Clerk.bind(str(ledger.path)))
    cluster.kill(cluster.autoscalers[0])
    responses = [handle.options(delay_s=0.2).work.remote(ticket) for ticket in range(5)]
    due_at = time.time() + 0.2
    eventually(lambda: time.time() > due_at)
    assert {response.status() for response in responses} == {"SCHEDULED"}

    cluster.start_autoscaler()

    assert serve.get(responses, timeout_s=20) == list(range(5))
    assert set(ledger.starts().values()) == {1}
