"""Applications that the tests of `deploy` and of what operators do import by name, as workers do."""

from __future__ import annotations

import os
import sys
from typing import Any

from pydantic import BaseModel

import qserve as serve
from qserve.handle import DeploymentHandle


@serve.deployment(num_replicas=2, user_config={"greeting": "hi"})
class Greeter:
    """Says what it is configured to say."""

    def __init__(self) -> None:
        self._greeting = ""

    def reconfigure(self, config: dict[str, str]) -> None:
        self._greeting = config["greeting"]

    def say(self, name: str) -> str:
        return f"{self._greeting} {name}{os.environ.get('SHOP_MARK', '')}"

    def pid(self) -> int:
        return os.getpid()


@serve.deployment
class Front:
    """Asks the greeter."""

    def __init__(self, greeter: DeploymentHandle[Any], title: str = "") -> None:
        self._greeter = greeter
        self._title = title

    async def __call__(self, name: str) -> str:
        return f"{self._title}{await self._greeter.say.remote(name)}"


@serve.deployment
class Broken:
    """Does not start."""

    def __init__(self) -> None:
        sys.stdout.write("looking for the weights\n")
        raise RuntimeError("there is no model file")


@serve.deployment(autoscaling_config={"min_replicas": 1, "max_replicas": 3})
class Scaled:
    """The autoscaler's."""

    def __call__(self) -> int:
        return os.getpid()


class Arguments(BaseModel):
    """What the builder takes."""

    title: str
    greeters: int = 1


def build(arguments: Arguments) -> serve.Application:
    """A variant of the application."""
    bound: serve.Application = Front.bind(Greeter.options(num_replicas=arguments.greeters).bind(), arguments.title)
    return bound


app = Front.bind(Greeter.bind())
broken = Broken.bind()
scaled = Scaled.bind()
