"""The three rounds in which an operator changes the key of a running cluster (docs/operations)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

import qserve as serve
from qserve.client import portal
from qserve.config import Settings
from tests.support.cluster import Cluster, eventually

OLD, NEW = b"the-key-of-last-year-0123456789", b"the-key-of-this-year-0123456789"


class Rotated(Cluster):
    """A cluster whose processes are replaced one after the other, with other keys."""

    def roll(self, *keys: bytes) -> None:
        """As a supervisor does: the new process is there before the old one drains. Clients come first."""
        chosen = replace(self.settings, secrets=keys)
        portal.use(chosen)
        for running, start in ((self.autoscalers, self.start_autoscaler), (self.workers, self.start_worker)):
            before = running[:]
            start(chosen)
            for old in before:
                eventually(lambda: len(serve.status().nodes) >= len(self.workers), what="the new worker has joined")
                old.terminate()
                assert old.wait(30) == 0
                running.remove(old)


@pytest.fixture
def rotated(settings: Settings) -> Iterator[Rotated]:
    """A cluster that begins with the old key alone."""
    running = Rotated(replace(settings, secrets=(OLD,)))
    portal.use(running.settings)
    try:
        running.start_autoscaler()
        running.start_worker()
        yield running
    finally:
        running.stop()


@serve.deployment
class Echo:
    def __call__(self, value):
        return value


@pytest.mark.slow
def test_a_key_is_changed_in_three_rounds_without_an_error(rotated):
    """A leaked key must go at once, and the service must not: each call on the way is answered."""
    handle = serve.run(Echo.bind(), name="echo")
    assert handle.remote(0).result(timeout_s=30) == 0
    rotated.roll(OLD, NEW)
    assert serve.get_app_handle("echo").remote(1).result(timeout_s=30) == 1
    rotated.roll(NEW, OLD)
    assert serve.get_app_handle("echo").remote(2).result(timeout_s=30) == 2
    serve.run(Echo.bind(), name="echo")
    rotated.roll(NEW)
    assert serve.get_app_handle("echo").remote(3).result(timeout_s=30) == 3
