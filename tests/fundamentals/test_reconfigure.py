"""`user_config` and other options that need no restart: the same processes go by them, and calls go on."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import Any

import pytest

import qserve as serve
from qserve.handle import DeploymentHandle
from tests.support.cluster import eventually

pytestmark = pytest.mark.usefixtures("cluster")


@serve.deployment(num_replicas=2, user_config={"threshold": 1})
class Classifier:
    """Loads for minutes, and takes its threshold from outside."""

    def __init__(self) -> None:
        self._threshold = 0

    def reconfigure(self, config: dict[str, Any]) -> None:
        if config["threshold"] < 0:
            raise ValueError("a threshold is not negative")
        self._threshold = config["threshold"]

    def answer(self) -> tuple[int, int]:
        return os.getpid(), self._threshold


def answers(handle: DeploymentHandle[Any], calls: int = 40) -> set[tuple[int, int]]:
    """What the replicas say: their pids and thresholds."""
    return set(serve.get([handle.answer.remote() for _ in range(calls)], timeout_s=10))


def test_a_new_user_config_restarts_nothing():
    """`serve.run` returns when all replicas have it."""
    handle = serve.run(Classifier.bind(), name="classifier")
    eventually(lambda: len(answers(handle)) == 2)
    before = {pid for pid, _ in answers(handle)} | {pid for pid, _ in answers(handle)}

    serve.run(Classifier.options(user_config={"threshold": 5}).bind(), name="classifier")

    eventually(lambda: answers(handle) == {(pid, 5) for pid in before})


def test_calls_go_on_while_the_configuration_changes():
    """No call fails, and none waits for it."""
    handle = serve.run(Classifier.bind(), name="busy")
    stop = threading.Event()
    seen: list[int] = []

    def ask() -> None:
        while not stop.is_set():
            seen.append(handle.answer.remote().result(timeout_s=10)[1])

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for threshold in range(2, 6):
            serve.run(Classifier.options(user_config={"threshold": threshold}).bind(), name="busy")
            eventually(partial(seen.__contains__, threshold))
    finally:
        stop.set()
        asking.join()
    assert {threshold for _, threshold in answers(handle)} == {5}


def test_a_configuration_that_is_refused_fails_the_deploy_with_its_traceback():
    """Otherwise a part of the replicas would go by the old one for ever, and nobody would know."""
    serve.run(Classifier.bind(), name="refusing")
    broken = Classifier.options(user_config={"threshold": -1}, max_constructor_retry_count=2).bind()

    with pytest.raises(serve.errors.DeployFailed, match="a threshold is not negative"):
        serve.run(broken, name="refusing", timeout_s=30)

    handle = serve.run(Classifier.options(user_config={"threshold": 7}).bind(), name="refusing")
    assert {threshold for _, threshold in answers(handle)} == {7}
