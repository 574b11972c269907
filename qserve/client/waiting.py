"""Several responses at once, for threads: what `ray.get` and `ray.wait` did."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from qserve.client.response import DeploymentResponse
from qserve.errors import ResultTimeout

Response = DeploymentResponse[Any]


@overload
def get(responses: Response, timeout_s: float | None = None) -> Any: ...
@overload
def get(responses: Sequence[Response], timeout_s: float | None = None) -> list[Any]: ...
def get(responses: Response | Sequence[Response], timeout_s: float | None = None) -> Any:
    """The result of a response, or the list of the results of several, in their order.

    timeout_s  for all together; over it ResultTimeout, and the calls go on
    """
    if isinstance(responses, DeploymentResponse):
        return responses.result(timeout_s=timeout_s)
    left = _Deadline(timeout_s)
    return [response.result(timeout_s=left.seconds()) for response in responses]


def wait(
    responses: Sequence[Response], num_returns: int = 1, timeout_s: float | None = None
) -> tuple[list[Response], list[Response]]:
    """Wait until `num_returns` responses are done, or `timeout_s` has passed. Returns (done, pending), in their order.

    Raises ValueError when `num_returns` is not within 1..len(responses).
    """
    if not 1 <= num_returns <= len(responses):
        raise ValueError(f"num_returns={num_returns} is not within 1..{len(responses)}")
    missing = num_returns
    try:
        for _ in as_completed(responses, timeout_s):
            missing -= 1
            if not missing:
                break
    except ResultTimeout:
        pass
    done = [response for response in responses if response.done()]
    return done, [response for response in responses if not response.done()]


def as_completed(responses: Iterable[Response], timeout_s: float | None = None) -> Iterator[Response]:
    """The responses in the order in which they get done. Raises ResultTimeout if `timeout_s` ends before the last."""
    arrived: queue.SimpleQueue[Response] = queue.SimpleQueue()
    left = _Deadline(timeout_s)
    waited_for = list(responses)
    count = len(waited_for)
    try:
        for response in waited_for:
            response.when_done(arrived.put)
        for number in range(count):
            try:
                yield arrived.get(timeout=left.seconds())
            except queue.Empty:
                text = f"{count - number} of {count} responses are not done after {timeout_s} s."
                raise ResultTimeout(text) from None
    finally:
        for response in waited_for:
            if not response.done():
                response.remove_done_callback(arrived.put)


class _Deadline:
    def __init__(self, timeout_s: float | None) -> None:
        self._at = None if timeout_s is None else time.monotonic() + timeout_s

    def seconds(self) -> float | None:
        """What is left, at least 0; None when there is no limit."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())
