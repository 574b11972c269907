"""Responses as a type checker sees them: awaited, blocked on, waited for together. Checked, never run."""

from __future__ import annotations

import asyncio
from typing import Any, assert_type

import qserve as serve
from qserve.handle import DeploymentResponse
from qserve.spec import CallState


async def awaiting_gives_the_value(response: DeploymentResponse[int]) -> None:
    assert_type(await response, int)
    assert_type(await asyncio.wait_for(response, timeout=1), int)
    assert_type(await asyncio.gather(response, response), tuple[int, int])
    assert_type(await response.status_async(), CallState)


def result_gives_the_value_and_takes_its_timeout_by_name(response: DeploymentResponse[str]) -> None:
    assert_type(response.result(), str)
    assert_type(response.result(timeout_s=1), str)
    assert_type(response.result(timeout_s=None), str)
    response.result(1)  # type: ignore[call-arg]  # keyword-only, as in Ray Serve


def questions_have_plain_answers(response: DeploymentResponse[Any]) -> None:
    assert_type(response.request_id, str)
    assert_type(response.done(), bool)
    assert_type(response.cancelled(), bool)
    assert_type(response.exception(), BaseException | None)
    assert_type(response.status(), CallState)
    response.request_id = "mine"  # type: ignore[misc]  # it is read only


def callbacks_get_the_response(response: DeploymentResponse[Any]) -> None:
    def on_done(done: DeploymentResponse[Any]) -> None:
        assert_type(done.exception(), BaseException | None)

    response.add_done_callback(on_done)
    assert_type(response.remove_done_callback(on_done), int)
    response.add_done_callback(lambda: None)  # type: ignore[arg-type,misc]  # it is called with the response


def several_at_once(first: DeploymentResponse[Any], second: DeploymentResponse[Any]) -> None:
    assert_type(serve.get(first), Any)
    assert_type(serve.get([first, second], timeout_s=1.0), list[Any])
    done, pending = serve.wait([first, second], num_returns=1, timeout_s=1.0)
    assert_type(done, list[DeploymentResponse[Any]])
    assert_type(pending, list[DeploymentResponse[Any]])
    for response in serve.as_completed([first, second]):
        assert_type(response, DeploymentResponse[Any])


def a_response_comes_back_by_its_id(response: DeploymentResponse[Any]) -> None:
    assert_type(serve.get_response(response.request_id), DeploymentResponse[Any])
    serve.get_response(response)  # type: ignore[arg-type]  # the id is a text
