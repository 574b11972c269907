"""Handles as a type checker sees them in user code: annotations, methods, options. Checked, never run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, assert_type

import qserve as serve
from qserve.handle import DeploymentHandle, DeploymentResponse


@serve.deployment
class Downstream:
    def say_hi(self, message: str) -> str:
        return f"Hello {message}!"


@serve.deployment
class Caller:
    """Annotated as the examples of the manual are."""

    def __init__(self, downstream: DeploymentHandle[Any]) -> None:
        self._downstream_handle = downstream

    async def __call__(self, message: str) -> str:
        greeting: str = await self._downstream_handle.say_hi.remote(message)
        return greeting


def handles_come_from_run_and_from_names() -> None:
    assert_type(serve.run(Caller.bind(Downstream.bind())), DeploymentHandle[Any])
    assert_type(serve.get_app_handle("default"), DeploymentHandle[Any])
    assert_type(serve.get_deployment_handle("Downstream", "default"), DeploymentHandle[Any])
    assert_type(serve.get_deployment_handle("Downstream", app_name=None), DeploymentHandle[Any])


def any_attribute_is_a_handle_of_a_method(handle: DeploymentHandle[Any]) -> None:
    assert_type(handle.say_hi, DeploymentHandle[Any])
    assert_type(handle.say_hi.remote("world", key=1), DeploymentResponse[Any])
    assert_type(handle.remote(), DeploymentResponse[Any])


def options_keep_the_type(handle: DeploymentHandle[int]) -> None:
    assert_type(handle.options(method_name="say_hi"), DeploymentHandle[int])
    assert_type(handle.options(request_serialization="json"), DeploymentHandle[int])
    assert_type(handle.options(delay_s=1.5), DeploymentHandle[int])
    assert_type(handle.options(at=datetime.now(UTC)).say_hi.remote(1), DeploymentResponse[Any])
    handle.options(at="noon")  # type: ignore[arg-type]  # a moment is a datetime, or seconds of the epoch
    handle.options(method="say_hi")  # type: ignore[call-arg]  # a misspelt option is found before it runs
    handle.options(method_name=1)  # type: ignore[arg-type]  # and a wrong value as well


def names_are_text(handle: DeploymentHandle[Any]) -> None:
    assert_type(handle.deployment_name, str)
    assert_type(handle.app_name, str)
    assert_type(handle.deployment_id, str)


def handles_are_made_by_name() -> None:
    made: DeploymentHandle[Any] = DeploymentHandle("Downstream", "default")
    assert_type(made.remote(1), DeploymentResponse[Any])
    DeploymentHandle(1)  # type: ignore[arg-type]  # a name is text
