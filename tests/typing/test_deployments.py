"""The decorator, `.options()`, `.bind()` and `serve.run` as a type checker sees them. Checked, never run."""

from __future__ import annotations

from typing import Any, assert_type

import qserve as serve
from qserve.spec import ApplicationStatus, ApplicationStatusInfo, ServeStatus


@serve.deployment
class Bare:
    def __call__(self) -> int:
        return 1


@serve.deployment(name="Other", num_replicas=2, max_ongoing_requests=10)
class WithOptions:
    def __init__(self, size: int) -> None:
        self.size = size


@serve.deployment
def function(number: int) -> int:
    return number


@serve.deployment(num_replicas="auto")
async def async_function(number: int) -> int:
    return number


def the_decorator_makes_a_deployment(plain: type[object]) -> None:
    assert_type(function, serve.Deployment)
    assert_type(async_function, serve.Deployment)
    assert_type(serve.deployment(plain), serve.Deployment)
    assert_type(serve.deployment(num_replicas=2)(plain), serve.Deployment)


def a_decorated_class_is_used_as_one() -> None:
    # mypy does not apply decorators of classes: to it these are Any, to pyright they are what is written here.
    deployment: serve.Deployment = Bare.options(name="Again", max_retries=0)
    application: serve.Application = WithOptions.bind(3)
    serve.run(application, name=deployment.name)


def bind_makes_an_application(model: serve.Deployment) -> None:
    assert_type(model.bind(), serve.Application)
    assert_type(model.bind(1, [model.bind()], size=3), serve.Application)
    assert_type(model.options(num_replicas=1).bind(size=3), serve.Application)


def options_make_another_deployment(model: serve.Deployment) -> None:
    assert_type(model.options(name="Again", max_retries=0), serve.Deployment)
    assert_type(model.num_replicas, int)
    assert_type(model.max_ongoing_requests, int)
    assert_type(model.max_queued_requests, int)
    assert_type(model.name, str)


def run_takes_an_application_and_not_a_deployment(model: serve.Deployment) -> None:
    serve.run(model.bind(), name="app", route_prefix="/app", timeout_s=None)
    serve.run(model.bind(), blocking=True, route_prefix=None)
    serve.run(model)  # type: ignore[arg-type]  # a forgotten .bind() is found before it runs
    serve.run(model.bind(), timeout=3)  # type: ignore[call-arg]  # timeout_s


def status_is_a_tree_of_records() -> None:
    status = serve.status()
    assert_type(status, ServeStatus)
    assert_type(status.applications, dict[str, ApplicationStatusInfo])
    app = status.applications["app"]
    assert_type(app.status, ApplicationStatus)
    assert_type(app.message, str)
    assert_type(app.deployments["Bare"].replica_states, dict[str, int])
    assert_type(status.to_dict(), dict[str, Any])


def inside_a_replica() -> None:
    context = serve.get_replica_context()
    assert_type(context.app_name, str)
    assert_type(context.deployment, str)
    assert_type(context.replica_id, str)
    assert_type(context.servable_object, Any)
